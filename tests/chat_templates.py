"""Chat templates that read what well-known ones read, and a computer whose day can be set."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

_TURNS = "{%- for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
_BEGUN = "{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
_UNTHOUGHT = (
    "{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)

TEMPLATES = {
    # As Llama 3.1: a date of its own where it is told none.
    "llama-3.1": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{{- "<|system|>Today Date: " + date_string + "\\n\\n" }}
"""
    + _TURNS
    + _BEGUN,
    # As Llama 3.2: the clock's.
    "llama-3.2": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "<|system|>Today Date: " + date_string + "\\n\\n" }}
"""
    + _TURNS
    + _BEGUN,
    "mistral-small": "{{- '[SYSTEM]Today is ' + strftime_now('%Y-%m-%d, a %A') + '.' }}\n"
    + _TURNS
    + _BEGUN,
    "smollm3": """
{%- if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}
{%- set today = strftime_now("%-d %B %Y") -%}
{{- "<|system|>Today Date: " ~ today ~ (" /think" if enable_thinking else " /no_think") }}
"""
    + _TURNS
    + _BEGUN
    + _UNTHOUGHT,
    "qwen3": _TURNS + _BEGUN + _UNTHOUGHT,
    # As DeepSeek-R1 and its distilled models: every answer begins with a thought.
    "deepseek-r1": "{{- bos_token }}"
    + _TURNS
    + "{%- if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}",
}


def set_today(monkeypatch: pytest.MonkeyPatch, *day: int) -> None:
    """What the clock says to chat templates."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(*day)  # type: ignore[arg-type]

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
