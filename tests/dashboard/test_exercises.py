"""What the page checks answers against is what the library computes, and what the textbook's exercises come to."""

import itertools
import json

import numpy as np
import pytest

from polyhead.dashboard.exercises import exercises

GIB = 2**30


@pytest.fixture(scope="module")
def found():
    return exercises()


def test_it_is_plain_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_mask_hides_nothing_from_the_last_token_so_its_row_stays(found):
    rows = found["mat"]["rows"]
    assert found["mat"]["hidden"] == [4, 3, 2, 1, 0]
    assert rows["causal"] == rows["scaled-dot-product"]
    np.testing.assert_allclose(rows["causal"]["output"], [0.4206, 0.1588, 0.3176, 0.2618], atol=5e-5)


@pytest.mark.parametrize(
    ("name", "gib"), [("MHA", 64), ("GQA-8", 16), ("MQA", 2), ("MLA, 512 and a RoPE key of 64", 4.5)]
)
def test_the_cache_at_128k_tokens(found, name, gib):
    [row] = [row for row in found["cache"]["rows"] if row["name"] == name]
    assert row["gib"] == gib


@pytest.mark.parametrize(
    ("names", "cache"),
    [
        (["MHA", "RoPE", "causal", "softmax"], 128),
        (["GQA-8", "RoPE", "causal", "softmax"], 32),
        (["GQA-8", "RoPE", "causal", "differential"], 32),
        (["MLA 512 + 64", "RoPE", "causal", "softmax"], 9),
        (["GQA-8", "RoPE", "causal, a window of 4,096", "softmax"], 0.5),
    ],
)
def test_a_stack_takes_its_weights_and_its_cache(found, names, cache):
    weights, kept, total, seconds = _stack(found, names)
    assert kept == cache * GIB
    assert weights + kept < total < 1.02 * (weights + kept)
    assert (total <= found["stack"]["memory"]) == (cache < 64)
    assert seconds == pytest.approx(total / 2.039e12, rel=0.07)  # an A100 reads all of it once, at 2,039 GB/s


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["MHA", "RoPE", "full", "softmax"], "there is no cache for it"),
        (["MHA", "ALiBi", "causal", "linear"], "Linear has no score that Alibi() could be added to"),
    ],
)
def test_a_stack_that_cannot_be_has_its_reason(found, names, reason):
    assert reason in found["stack"]["problems"][_stack(found, names)]


def test_there_is_a_stack_for_every_way_to_choose(found):
    assert len(found["stack"]["stacks"]) == np.prod([len(names) for names in found["stack"]["options"].values()])


def test_rescaling_is_what_makes_differential_attention_sharper(found):
    largest = {name: max(row["weights"]) for name, row in found["sharpest"]["rows"].items()}
    assert largest["difference"] < largest["scaled-dot-product"] < largest["differential"]
    assert largest["differential"] / largest["scaled-dot-product"] == pytest.approx(1.35, abs=5e-3)
    difference = np.maximum(0, found["sharpest"]["rows"]["difference"]["weights"])
    np.testing.assert_allclose(difference / difference.sum(), found["sharpest"]["rows"]["differential"]["weights"])


def test_the_combination_is_closest_to_causal_attention(found):
    distances = found["combination"]["distances"]
    assert distances == pytest.approx({"causal": 0.067, "rope": 0.658, "differential": 0.674}, abs=5e-4)
    assert found["combination"]["row"]["weights"] == pytest.approx([0.770, 0.230, 0, 0, 0], abs=5e-4)
    assert found["combination"]["without"]["rope"]["weights"][0] == pytest.approx(0.939, abs=5e-4)


def _stack(found, names):
    ways = list(itertools.product(*found["stack"]["options"].values()))
    return found["stack"]["stacks"][ways.index(tuple(names))]
