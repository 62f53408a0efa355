from __future__ import annotations

import pytest

from unlearnbench.errors import OptionError
from unlearnbench.lm_eval.arguments import read_pairs, translate


@pytest.mark.parametrize(
    "text",
    [
        "pretrained=gpt2,dtype=float32",
        "pretrained=a/b,load_in_4bit=True,max_length=12,x=0.5",
        "temperature=0.8,top_p=1",
    ],
)
def test_pairs_are_read_as_lm_eval_reads_them(text: str) -> None:
    from lm_eval.utils import simple_parse_args_string

    assert read_pairs(text, "--x") == simple_parse_args_string(text)


def test_commas_in_brackets_and_quotes_belong_to_a_value() -> None:
    found = read_pairs("until=['a,b', \"c\"],max_gen_toks=3,do_sample=false", "--gen-kwargs")
    assert found == {"until": ["a,b", "c"], "max_gen_toks": 3, "do_sample": False}
    assert read_pairs("pretrained=/it's/here,seed=1", "-") == {
        "pretrained": "/it's/here",
        "seed": 1,
    }


@pytest.mark.parametrize("text", ["novalue", "=3", "a=1,a=2", "a b=3"])
def test_what_is_no_pair(text: str) -> None:
    with pytest.raises(OptionError, match="--x"):
        read_pairs(text, "--x")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            "pretrained=a,revision=v1,dtype=bfloat16",
            {"model": "a", "revision": "v1", "dtype": "bf16"},
        ),
        ("pretrained=a,tokenizer=b/c", {"model": "a", "tokenizer": "b/c"}),
        ("pretrained=base,peft=adapter", {"model": "adapter", "base": "base"}),
        ("pretrained=a,load_in_8bit=True", {"model": "a", "quant": "bnb-int8"}),
        ("pretrained=a,load_in_4bit=True", {"model": "a", "quant": "bnb-fp4"}),
        (
            "pretrained=a,load_in_4bit=True,bnb_4bit_quant_type=nf4,bnb_4bit_compute_dtype=float16"
            ",bnb_4bit_use_double_quant=True",
            {"model": "a", "quant": "bnb-nf4-dq", "dtype": "fp16"},
        ),
        (
            "pretrained=a,trust_remote_code=True,device=cpu,batch_size=4",
            {"model": "a", "trust_remote_code": True, "device": "cpu", "batch_size": "4"},
        ),
    ],
)
def test_lm_evals_words_in_ours(given: str, expected: dict[str, object]) -> None:
    assert translate(read_pairs(given, "--model-args")) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("parallelize=True", "parallelize has no meaning here"),
        ("pretrained=a,dtype=float64", "dtype=float64"),
        ("peft=adapter", "pretrained is the base"),
        ("pretrained=a,quant=nf4,load_in_8bit=True", "one of quant"),
        ("pretrained=a,bnb_4bit_quant_type=nf4", "needs load_in_4bit"),
        ("pretrained=a,load_in_4bit=True,bnb_4bit_quant_type=int4", "fp4 or nf4"),
        ("pretrained=a,trust_remote_code=perhaps", "True or False"),
        ("pretrained=a,calibration_samples=many", "is a number"),
    ],
)
def test_what_has_no_meaning(given: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        translate(read_pairs(given, "--model-args"))
