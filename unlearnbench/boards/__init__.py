"""Leaderboards: a definition, one JSON an entry, and what is generated from them."""

from __future__ import annotations

from unlearnbench.boards.entry import Board, BoardEntry, add_entry, find_boards, read_board

__all__ = ["Board", "BoardEntry", "add_entry", "find_boards", "read_board"]
