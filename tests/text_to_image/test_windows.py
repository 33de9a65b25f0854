"""Long texts in windows, and the weights of words."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.text_to_image import Tokenizer, Tokens, apply_weights, tokenize_windows

LETTERS = "abcdefghijklmnopqrstuvwxyz,:.()[]\\0123456789-"
VOCAB = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
A, BOS, EOS = VOCAB.index("a</w>"), len(VOCAB) - 2, len(VOCAB) - 1
TOKENIZER = Tokenizer(VOCAB, [], max_length=7)


def words(tokens):
    """The text and the weights of each window, without the tokens around them."""
    found = []
    for ids, weights in zip(tokens.ids[0], tokens.weights[0], strict=True):
        inside = ids < BOS
        assert (weights[~inside] == 1).all() and ids[0] == BOS and EOS in ids
        found.append((TOKENIZER.decode(ids).replace(" ", ""), np.round(weights[inside].astype(float), 4).tolist()))
    return found


def of(prompt, **options):
    return words(tokenize_windows(TOKENIZER, [prompt], **options))


def test_one_window_without_marks_is_what_the_tokenizer_gives():
    prompts = ["a b c", "", "d"]
    tokens = tokenize_windows(TOKENIZER, prompts)
    np.testing.assert_array_equal(tokens.ids[:, 0], TOKENIZER(prompts))
    assert tokens.ids.shape == tokens.weights.shape == (3, 1, 7)
    assert (tokens.ids.dtype, tokens.weights.dtype) == (np.int32, np.float32) and (tokens.weights == 1).all()
    assert [leaf.shape for leaf in jax.tree.leaves(tokens)] == [(3, 1, 7)] * 2 and isinstance(tokens, Tokens)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (b) c", ("abc", [1, 1.1, 1])),
        ("a [b] c", ("abc", [1, 0.9091, 1])),
        ("a (b:1.3) c", ("abc", [1, 1.3, 1])),
        ("(a b:0.5) c", ("abc", [0.5, 0.5, 1])),
        ("(a: .5 )b", ("ab", [0.5, 1])),  # one word, of two tokens
        ("(a:-1) (b:0)", ("ab", [-1, 0])),
        ("((a) b)", ("ab", [1.21, 1.1])),
        ("((a:2) b:1.5)", ("ab", [3, 1.5])),
        ("[[a]] ([b])", ("ab", [0.8264, 1])),
        (r"\(a\)", ("(a)", [1, 1, 1])),
        (r"(\[a\]:2)", ("[a]", [2, 2, 2])),
        (r"a\\b", ("a\\b", [1, 1, 1])),
        (r"(a\))", ("a)", [1.1, 1.1])),
        ("(a:b)", ("a:b", [1.1, 1.1, 1.1])),
        ("a:2 b", ("a:2b", [1, 1, 1, 1])),
        ("() [] a", ("a", [1])),
        ("", ("", [])),
    ],
)
def test_brackets_weigh_what_they_hold(prompt, expected):
    assert of(prompt) == [expected]


def test_the_tokens_are_those_of_the_text_without_marks():
    for marked, plain in [("(ab:1.2), [c]d", "ab, cd"), ("(((x)))", "x"), (r"a\(b", "a(b")]:
        one, other = (tokenize_windows(TOKENIZER, [text], weights=text == marked) for text in (marked, plain))
        np.testing.assert_array_equal(one.ids, other.ids)


@pytest.mark.parametrize(
    ("prompt", "bracket", "at"),
    [("a (b", "(", 2), ("a) b", ")", 1), ("(a]", "]", 2), ("[a)", ")", 2), ("b:1.2)", ")", 5), ("[b:1.2)", ")", 6)],
)
def test_a_bracket_without_a_partner_is_refused(prompt, bracket, at):
    with pytest.raises(ValueError, match=f"'\\{bracket}' at {at} of .* has no partner; write ") as error:
        tokenize_windows(TOKENIZER, [prompt])
    assert f"\\{bracket} for the character" in str(error.value)
    assert tokenize_windows(TOKENIZER, [prompt], weights=False).ids.shape[-1] == 7


def test_long_texts_take_several_windows():
    assert of("a b c d e f") == [("abcde", [1] * 5), ("f", [1])]
    assert of("a b c d (e f:2)") == [("abcde", [1, 1, 1, 1, 2]), ("f", [2])]
    assert of("a BREAK b c") == [("a", [1]), ("bc", [1, 1])]
    assert of("(a BREAK b) c") == [("a", [1.1]), ("bc", [1.1, 1])]
    assert of("a\nBREAK\nb BREAK BREAK c BREAK") == [("a", [1]), ("b", [1]), ("c", [1])]
    assert of("break BREAKS")[0][0] == "break"  # a word like others
    assert of("a b c d e BREAK f") == of("a b c d e f")
    tokens = tokenize_windows(TOKENIZER, ["a", "a b c d e f"])
    assert tokens.ids.shape == (2, 2, 7) and tokens.ids[0, 1].tolist() == [BOS] + [EOS] * 6


def test_a_given_number_of_windows():
    assert of("a", windows=3) == [("a", [1]), ("", []), ("", [])]
    with pytest.warns(UserWarning, match="prompts must fit 1 window each, and .* needs 2: its end is cut, 'f g'"):
        assert of("a b c d e f g", windows=1) == [("abcde", [1] * 5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenize_windows(TOKENIZER, [" ".join("a" * 10_000)]).ids.shape == (1, 2000, 7)
    assert tokenize_windows(TOKENIZER, ["a b"], max_length=3).ids.tolist() == [[[BOS, A, EOS], [BOS, A + 1, EOS]]]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"windows": 0}, "windows must be a positive whole number or None, got 0"),
        ({"windows": True}, "windows must be"),
        ({"max_length": 2}, "max_length must be a whole number of at least 3"),
    ],
)
def test_numbers_out_of_range_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        tokenize_windows(TOKENIZER, ["a"], **options)


def test_weights_multiply_and_keep_the_mean_of_each_window():
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(2, 3, 5, 4)) + 1).astype(np.float32)
    m = rng.uniform(0.5, 2, (2, 3, 5)).astype(np.float32)
    got = jax.jit(apply_weights)(z, m)
    weighted = z * m[..., None]
    axes = (-2, -1)
    expected = weighted * z.mean(axes, keepdims=True) / weighted.mean(axes, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(got.mean(axes), z.mean(axes), rtol=1e-4)
    np.testing.assert_allclose(apply_weights(z, np.full_like(m, 1.7)), z, rtol=1e-5)
    np.testing.assert_array_equal(apply_weights(z[1], m[1])[2], apply_weights(z[1, 2], m[1, 2]))  # each window alone
    assert (apply_weights(z, 0 * m) == 0).all()  # no mean to restore
    assert apply_weights(jnp.asarray(z, jnp.bfloat16), m).dtype == jnp.bfloat16
