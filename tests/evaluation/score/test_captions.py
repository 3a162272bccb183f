"""BLEU, ROUGE and METEOR by hand, and against the libraries that define them."""

import math
import random

import pytest

from collamo.errors import UsageError
from collamo.evaluation.score.bleu import ngram_statistics
from collamo.evaluation.score.captions import TextScorer, text_scores
from collamo.evaluation.score.tokenisation import load_tokenisation
from collamo.evaluation.statistics import Sums


def scored(pairs, scorer=None):
    scorer = scorer or TextScorer(load_tokenisation("whitespace"))
    sums = Sums()
    for guess, truth in pairs:
        sums.add(scorer.row(guess, truth))
    return text_scores(sums)


def test_bleu_and_rouge_by_hand():
    # 3 of 4 words, 1 of 3 word pairs; a word longer than the reference, so no penalty.
    scores = scored([("a b x c", "a b c")])
    assert scores["bleu1"] == pytest.approx(3 / 4)
    assert scores["bleu2"] == pytest.approx((3 / 4 * 1 / 3) ** 0.5)
    assert scores["bleu4"] == 0
    assert scores["rouge1"] == scores["rougeL"] == pytest.approx(2 * 3 / 7)
    assert scores["rouge2"] == pytest.approx(2 * 1 / 5)
    assert "meteor" not in scores


def test_bleu_is_nltks_and_rouge_l_is_rouge_scores():
    from nltk.translate.bleu_score import corpus_bleu
    from rouge_score.rouge_scorer import RougeScorer

    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdef", k=draw.randint(1, 20))) for _ in range(60)]
    pairs = list(zip(texts[:30], texts[30:], strict=True))
    scores = scored(pairs)
    guesses, truths = [g.split() for g, _ in pairs], [[t.split()] for _, t in pairs]
    for order in (1, 2, 3, 4):
        weights = [1 / order] * order
        assert scores[f"bleu{order}"] == pytest.approx(corpus_bleu(truths, guesses, weights))
    rouge = RougeScorer(["rougeL"])
    expected = [rouge.score(truth, guess)["rougeL"].fmeasure for guess, truth in pairs]
    assert scores["rougeL"] == pytest.approx(sum(expected) / len(expected))


def test_equal_texts_score_one_and_empty_predictions_nothing():
    same = "a b c d e"
    assert scored([(same, same)]) == pytest.approx(dict.fromkeys(scored([(same, same)]), 1))
    assert set(scored([("", same)]).values()) == {0}
    half = scored([(same, same), ("", same)])
    assert half["rouge1"] == pytest.approx(0.5)
    # nltk counts one possible word even for an empty text; the lengths are 5 of 10.
    assert half["bleu1"] == pytest.approx(5 / 6 * math.exp(-1))


def test_rouge_is_symmetric_and_no_score_knows_an_order():
    pairs = [("a b c", "a c d e"), ("x y", "y"), ("q", "q r s t u v")]
    scores, turned = scored(pairs), scored([(truth, guess) for guess, truth in pairs])
    for name in ("rouge1", "rouge2", "rougeL"):
        assert turned[name] == pytest.approx(scores[name])
    assert scored(pairs[::-1]) == pytest.approx(scores)


@pytest.mark.slow
def test_meteor_knows_stems_and_synonyms(shared_data):
    wordnet = shared_data / "wordnet.zip"
    scorer = TextScorer(load_tokenisation("whitespace"), wordnet)
    # One chunk of two matches: penalty 0.5 · (1/2)³.
    assert scorer.row("red cars", "red car")["meteor"] == pytest.approx(1 - 0.5 / 8)
    assert scorer.row("red auto", "red car")["meteor"] == pytest.approx(1 - 0.5 / 8)
    assert scorer.row("red dog", "red car")["meteor"] == pytest.approx(0.5 * 0.5)
    assert scorer.row("", "red car")["meteor"] == 0


def test_wordnet_must_be_there(tmp_path):
    with pytest.raises(UsageError, match=r"no data\.noun"):
        TextScorer(load_tokenisation("whitespace"), tmp_path)


def test_13a_is_sacrebleus():
    """Of texts with four tokens at least: nltk gives shorter ones a possible n-gram."""
    import sacrebleu

    answers = [
        "a molecule with two rings, one acid group.",
        "a text that is short",
        "It has a logP of 1.5.",
    ]
    truths = ["a molecule with one ring, one acid group.", "a text so short", "Its logP is 1.5."]
    expected = sacrebleu.corpus_bleu(answers, [truths], tokenize="13a", smooth_method="none").score
    scores = scored(zip(answers, truths, strict=True), TextScorer(load_tokenisation("13a")))
    assert 0.2 < scores["bleu4"] == pytest.approx(expected / 100)


def test_one_word_has_one_possible_pair():
    assert ngram_statistics(["a"], ["a"])["bleu_total2"] == 1
