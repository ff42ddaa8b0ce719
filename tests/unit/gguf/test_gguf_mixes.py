"""Types of the tensors of a GGUF file: llama.cpp's mixes against the sizes of published files, and short rows."""

from __future__ import annotations

from typing import get_args

import gguf
import pytest

from surgery.errors import InputError
from surgery.gguf.mixes import Shared, check_type, file_type, kinds
from surgery.gguf.types import Kind, bytes_of
from surgery.recipe.storage import GgufType

TYPES = get_args(GgufType)
PUBLISHED = {
    # GB of the files on the Hub: TheBloke/Llama-2-7B-GGUF (no importance matrix, without header about 1 MB) ...
    "llama_2_7b": {"Q8_0": 7.16, "Q6_K": 5.53, "Q5_K_M": 4.78, "Q5_K_S": 4.65, "Q4_K_M": 4.08, "Q4_K_S": 3.86,
                   "Q4_0": 3.83, "Q3_K_L": 3.60, "Q3_K_M": 3.30, "Q3_K_S": 2.95},
    # ... and bartowski/Meta-Llama-3-8B-Instruct-GGUF (with one, header about 8 MB).
    "llama_3_8b": {"Q8_0": 8.54, "Q6_K": 6.60, "Q5_K_M": 5.73, "Q5_K_S": 5.60, "Q4_K_M": 4.92, "Q4_K_S": 4.69,
                   "IQ4_NL": 4.68, "IQ4_XS": 4.45, "Q3_K_L": 4.32, "Q3_K_M": 4.02, "Q3_K_S": 3.66, "IQ3_M": 3.78,
                   "IQ3_S": 3.68, "Q2_K": 3.18},
}  # fmt: skip


def llama(blocks: int, hidden: int, width: int, values: int, vocabulary: int, tied: bool = False):
    shapes = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        shapes["output.weight"] = (vocabulary, hidden)
    for block in range(blocks):
        parts = {
            "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (hidden, hidden), "attn_k": (values, hidden),
            "attn_v": (values, hidden), "attn_output": (hidden, hidden), "ffn_gate": (width, hidden),
            "ffn_up": (width, hidden), "ffn_down": (hidden, width),
        }  # fmt: skip
        shapes |= {f"blk.{block}.{name}.weight": shape for name, shape in parts.items()}
    return shapes


def gigabytes(shapes, type_name, group, importance):
    chosen = kinds(shapes, type_name, Shared(group), importance)
    return sum(bytes_of(shape, chosen[name]) for name, shape in shapes.items()) / 1e9


@pytest.mark.parametrize("type_name", PUBLISHED["llama_2_7b"])
def test_llama_2_7b_is_as_large_as_published(type_name):
    found = gigabytes(llama(32, 4096, 11008, 4096, 32000), type_name, 1, False)
    assert found + 0.001 == pytest.approx(PUBLISHED["llama_2_7b"][type_name], abs=0.0055)


@pytest.mark.parametrize("type_name", PUBLISHED["llama_3_8b"])
def test_llama_3_8b_is_as_large_as_published(type_name):
    found = gigabytes(llama(32, 4096, 14336, 1024, 128256), type_name, 4, True)
    assert found + 0.008 == pytest.approx(PUBLISHED["llama_3_8b"][type_name], abs=0.0055)


def test_blocks_with_more_bits_of_q4_k_m():
    chosen = kinds(llama(32, 256, 256, 256, 64), "Q4_K_M")
    more = [block for block in range(32) if chosen[f"blk.{block}.ffn_down.weight"] == Kind.Q6_K]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert more == [block for block in range(32) if chosen[f"blk.{block}.attn_v.weight"] == Kind.Q6_K]
    assert {chosen[f"blk.{block}.ffn_up.weight"] for block in range(32)} == {Kind.Q4_K}


def test_ranks_count_the_tensors_that_are_there():
    shapes = llama(16, 256, 256, 256, 64)
    for block in (0, 1):  # attention removed there: the first values are those of block 2
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(f"blk.{block}.attn")}
    chosen = kinds(shapes, "Q3_K_M")
    assert [chosen[f"blk.{block}.attn_v.weight"].name for block in (2, 3, 4)] == ["Q5_K", "Q5_K", "Q4_K"]


@pytest.mark.parametrize(
    ("type_name", "row", "expected"),
    [
        ("Q4_K", 576, "Q5_0"), ("Q5_K", 576, "Q5_1"), ("Q6_K", 576, "Q8_0"), ("Q3_K", 576, "Q4_0"),
        ("Q2_K", 96, "Q4_0"), ("IQ4_XS", 64, "IQ4_NL"), ("IQ3_S", 32, "IQ4_NL"), ("Q4_0", 48, "F16"),
        ("Q4_K", 80, "F16"), ("MXFP4", 64, "MXFP4"), ("MXFP4", 40, "F16"), ("F16", 7, "F16"), ("F32", 7, "F32"),
        ("Q8_0", 33, "F16"),
    ],
)  # fmt: skip
def test_rows_that_are_not_whole_blocks(type_name, row, expected):
    chosen = kinds(llama(1, row, 256, row, 64), type_name)
    assert chosen["blk.0.ffn_up.weight"].name == expected


@pytest.mark.parametrize("type_name", TYPES)
def test_vectors_rotary_factors_and_positions_stay_float(type_name):
    shapes = llama(2, 256, 256, 256, 64) | {"rope_freqs.weight": (2, 8), "position_embd.weight": (32, 256)}
    chosen = kinds(shapes, type_name)
    floating = {name for name, kind in chosen.items() if kind == Kind.F32}
    assert floating >= {"output_norm.weight", "blk.1.ffn_norm.weight", "rope_freqs.weight", "position_embd.weight"}
    assert list(chosen) == list(shapes)


def test_head_has_six_bits_or_more_but_in_a_pure_file():
    for tied in (False, True):
        shapes = llama(2, 256, 256, 256, 64, tied)
        head = "token_embd.weight" if tied else "output.weight"
        assert kinds(shapes, "Q4_K_M")[head] == Kind.Q6_K and kinds(shapes, "Q4_K")[head] == Kind.Q4_K
        assert kinds(shapes, "MXFP4")[head] == Kind.Q8_0 and kinds(shapes, "Q8_0")[head] == Kind.Q8_0
        assert kinds(llama(2, 576, 256, 192, 64, tied), "Q3_K_M")[head] == Kind.Q8_0


def test_importance_changes_two_mixes():
    shapes = llama(8, 256, 256, 256, 64)
    down = "blk.0.ffn_down.weight"
    assert kinds(shapes, "IQ4_NL")[down] == Kind.Q5_K and kinds(shapes, "IQ4_NL", importance=True)[down] == Kind.IQ4_NL
    assert kinds(shapes, "Q4_0")[down] == Kind.Q4_0 and kinds(shapes, "Q4_0", importance=True)[down] == Kind.Q4_1


def test_every_type_has_a_number_in_the_file():
    assert file_type("F32") == gguf.LlamaFileType.ALL_F32 and file_type("Q4_K_M") == gguf.LlamaFileType.MOSTLY_Q4_K_M
    assert all(isinstance(file_type(name), gguf.LlamaFileType) for name in TYPES)
    with pytest.raises(InputError, match="Q4_K_M"):
        check_type("Q4_K_X")
