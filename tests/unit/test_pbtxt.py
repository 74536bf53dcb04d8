"""``config.pbtxt``: what is written is what is read again, and each difference from ``model.toml`` is told."""

from __future__ import annotations

import pytest

from service.repository import config_pbtxt, differences
from service.stage import Tensor

IMAGE = Tensor(name="image", shape=(96, 192, 192))
BOXES = (Tensor(name="boxes", channels=200, shape=(6,)), Tensor(name="scores", channels=200, shape=()))
TEXT = config_pbtxt("toy", IMAGE, BOXES, max_batch_size=4)
MISTAKES = {
    "another name": ('name: "toy"', 'name: "other"', "name is other, not toy"),
    "another backend": ('backend: "onnxruntime"', 'backend: "python"', "backend is python, not onnxruntime"),
    "no batches": ("max_batch_size: 4", "max_batch_size: 0", "max_batch_size is 0"),
    "another tensor's name": ('name: "boxes"', 'name: "boxen"', "boxen"),
    "another type": ("data_type: TYPE_FP32", "data_type: TYPE_FP16", "TYPE_FP16"),
    "other sizes": ("dims: [ 200, 6 ]", "dims: [ 200, 4 ]", "boxes TYPE_FP32 [200, 4]"),
    "a brace too few": ("dims: [ 200, 6 ]\n  }", "dims: [ 200, 6 ]\n", "no protobuf text"),
    "a word that is no field": ("max_batch_size: 4", "max_batch_size: 4 $", "no protobuf text"),
}


def test_what_is_written_is_right() -> None:
    assert differences(TEXT, "toy", IMAGE, BOXES) == []
    assert "max_batch_size: 4\n" in TEXT
    assert "dims: [ 1, 96, 192, 192 ]" in TEXT


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_difference_is_told(mistake: str) -> None:
    right, wrong, words = MISTAKES[mistake]
    assert right in TEXT
    assert words in "; ".join(differences(TEXT.replace(right, wrong, 1), "toy", IMAGE, BOXES))


def test_comments_and_one_line_messages_are_read() -> None:
    text = '# a "comment" {\nname: "a # b" backend: "onnxruntime" max_batch_size: 1 # {\n' + "".join(
        f'{side} {{ name: "x" data_type: TYPE_FP32 dims: 1 dims: 2 }}\n' for side in ("input", "output")
    )
    assert differences(text, "a # b", Tensor(name="x", shape=(2,)), [Tensor(name="x", shape=(2,))]) == []
