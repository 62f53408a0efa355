"""Kinds of tasks: one file each, found by listing this folder.

A kind's file has ``NAME`` (what a task file's ``output_type`` says) and ``TASK`` (its subclass of
``TaskSpec``). See docs/add-a-kind.md.
"""
