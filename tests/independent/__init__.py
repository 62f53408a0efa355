"""Every figure of a comparison and of a board, computed a second time.

Written from docs/protocol.md, docs/leaderboards.md and docs/result-format.md alone: it reads the
files itself and imports nothing of the package. Where the package draws, this integrates: the
chance that a sum of weighted Gamma variables lies below 0 follows from its characteristic function
(Gil-Pelaez 1951, Imhof 1961). So an interval's end is held against its definition: the chance that
it leaves out must be 2.5%, within what 4,999 draws allow.
"""
