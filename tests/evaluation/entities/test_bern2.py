"""BERN2 on a local fake server: confidence, identifiers, answers kept, faults counted."""

import os
import signal
import subprocess
import sys
import time

import pytest
from fake_service import Reply, fake_service

from collamo.evaluation.entities.bern2 import Bern2Extractor
from collamo.evaluation.entities.extractor import Caption
from collamo.evaluation.entities.loading import load_extractor
from collamo.evaluation.service import Limits, ServiceDownError

QUICK = Limits(concurrency=4, attempts=2, timeout=2)


def mention(text, prob=0.99, ids=("CUI-less",), obj="drug"):
    span = {"begin": 0, "end": len(text)}
    return {"mention": text, "id": list(ids), "obj": obj, "prob": prob, "span": span}


def bern2(body, _=0):
    """Annotate every word as a chemical; the mention says how sure it is ("ester:0.89")."""
    words = [word.partition(":") for word in body["text"].split()]
    return {"annotations": [mention(word, float(prob or 1)) for word, _, prob in words]}


def captions(*texts):
    return [Caption(row, "prediction", text) for row, text in enumerate(texts, 1)]


def test_what_counts_as_an_entity(tmp_path):
    answer = {
        "annotations": [
            mention("Ketone"),
            mention("ester", 0.9),
            mention("furan", 0.899),
            mention("acid", None),
            mention("aspirin", ids=("mesh:D001241",)),
            mention("acetylsalicylic acid", ids=("mesh:D001241",)),
            mention("human", obj="species"),
        ]
    }
    with fake_service(lambda *_: answer) as server:
        with load_extractor(f"bern2:{server.url}", tmp_path / "answers.jsonl") as extractor:
            assert extractor.extract(captions("x")) == [{"ketone", "ester", "mesh:D001241"}]
            about = {"entities_confidence": 0.9, "entities_kinds": ["drug"]}
            assert extractor.about == {"entities": f"bern2:{server.url}/plain", **about}
        assert server.paths == ["/plain"]
        with Bern2Extractor(
            server.url, tmp_path / "answers.jsonl", confidence=0.5, kinds=("species",)
        ) as extractor:
            assert extractor.extract(captions("x")) == [{"human"}]
        assert len(server.bodies) == 1  # whole answers are kept, whatever counts later


def test_equal_texts_are_asked_once_and_never_again(tmp_path):
    texts = ["ketone", "", "ester ketone", "ketone", " \n"]
    with fake_service(bern2) as server:
        for _ in range(2):
            with Bern2Extractor(server.url, tmp_path / "answers.jsonl", QUICK) as extractor:
                found = extractor.extract(captions(*texts))
            assert found == [{"ketone"}, set(), {"ester", "ketone"}, {"ketone"}, set()]
        assert sorted(body["text"] for body in server.bodies) == ["ester ketone", "ketone"]


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"error": "out of memory"},
        {"annotations": {}},
        {"annotations": ["ketone"]},
        {"annotations": [{"mention": 3}]},
        {"annotations": [mention("x", prob="0.99")]},
        {"annotations": [mention("x", prob=7)]},
        {"annotations": [mention("x", ids=(3,))]},
    ],
)
def test_a_text_without_a_right_answer_has_no_entities_known(tmp_path, answer, caplog):
    def reply(body, _):
        return answer if body["text"] == "bad" else bern2(body)

    with fake_service(reply) as server:
        with Bern2Extractor(server.url, tmp_path / "answers.jsonl", QUICK) as extractor:
            assert extractor.extract(captions("good", "bad")) == [{"good"}, None]
            assert extractor.extract(captions("bad")) == [None]  # asked again: not kept
        assert sum(body["text"] == "bad" for body in server.bodies) == 4
    assert "no entities of 'bad'" in caplog.text


def test_a_dead_server_ends_the_run_and_says_how_to_go_on(tmp_path):
    def reply(body, number):
        return bern2(body) if number < 6 else Reply({}, 500)

    texts = captions(*(f"word{i}" for i in range(40)))
    path = tmp_path / "answers.jsonl"
    with (
        fake_service(reply) as server,
        Bern2Extractor(server.url, path, QUICK) as extractor,
        pytest.raises(ServiceDownError, match=r"answers so far are in .*answers\.jsonl"),
    ):
        extractor.extract(texts)
    assert path.read_text().count('"answer"') == 6


RUN = """
import sys
from collamo.evaluation.entities.extractor import Caption
from collamo.evaluation.entities.bern2 import Bern2Extractor
from collamo.evaluation.service import Limits
from pathlib import Path
url, path, count = sys.argv[1:]
with Bern2Extractor(url, Path(path), Limits(concurrency=2)) as extractor:
    texts = [Caption(i, "prediction", f"word{i}") for i in range(int(count))]
    assert extractor.extract(texts) == [{f"word{i}"} for i in range(int(count))]
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(tmp_path):
    path, count = tmp_path / "answers.jsonl", 30
    with fake_service(lambda body, _: Reply(bern2(body), seconds=0.05)) as server:
        command = [sys.executable, "-c", RUN, server.url, str(path), str(count)]
        process = subprocess.Popen(command, env=os.environ)
        while len(server.bodies) < 10:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = path.read_bytes().count(b'"answer"')
        assert 8 <= kept < count  # all but those under way
        subprocess.run(command, check=True, env=os.environ)
        assert len(server.bodies) <= count + 2 + 2
    assert path.read_bytes().count(b'"answer"') == count
