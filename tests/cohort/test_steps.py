"""A step is done once, whole or not at all, and its record tells what it was made from."""

import errno
import logging
import os
from pathlib import Path

import pytest

from stmsi._cohort import Record, Records, Step, carry_out, files_of


def step(tmp_path, key="k1", work=None, **more):
    """A step that writes its key."""

    def write(out):
        out.write_text(key)
        return {"n": 1}

    return Step("align", tmp_path / "s1" / "out.txt", key, work or write, "s1", **more)


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path / "records")


def do(one, records, **more):
    return carry_out(one, records, str, **more)


def test_done_once_and_again_when_its_inputs_change(tmp_path, records):
    assert do(step(tmp_path), records).state == "done"
    outcome = do(step(tmp_path), records)
    assert (outcome.state, outcome.record.result) == ("kept", {"n": 1})
    assert do(step(tmp_path, "k2"), records).state == "done"
    assert step(tmp_path).output.read_text() == "k2"
    assert do(step(tmp_path, "k2"), records, again=True).state == "done"
    step(tmp_path).output.unlink()
    assert do(step(tmp_path, "k2"), records).state == "done"


def test_an_error_is_kept_and_tried_again(tmp_path, records):
    do(step(tmp_path), records)

    def broken(out):
        out.write_text("half")
        raise ValueError("bad pixel")

    outcome = do(step(tmp_path, "k2", broken), records)
    assert (outcome.state, outcome.record.error) == ("failed", "bad pixel")
    assert step(tmp_path).output.read_text() == "k1", "what was there before stays"
    assert step(tmp_path, "k2").fresh(records) is None
    assert do(step(tmp_path, "k2"), records).state == "done"
    assert [p.name for p in (tmp_path / "s1").iterdir()] == ["out.txt"]


def test_a_run_killed_between_output_and_record_does_it_again(tmp_path, records, monkeypatch):
    do(step(tmp_path), records)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Records, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        do(step(tmp_path, "k2"), records)
    monkeypatch.undo()
    assert records.read("align", "s1") is None
    assert do(step(tmp_path, "k2"), records).state == "done"


def test_a_full_disk_is_no_fault_of_the_step(tmp_path, records):
    def full(out):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        do(step(tmp_path, work=full), records)


def test_a_step_waits_for_what_it_needs(tmp_path, records):
    first = step(tmp_path)
    second = Step("map", tmp_path / "m.txt", "m", first.work, "s1", needs=(first,))
    outcome = do(second, records)
    assert (outcome.state, outcome.record.error) == ("blocked", "needs s1: align")
    do(first, records)
    assert do(second, records).state == "done"
    first.output.unlink()
    assert do(second, records).state == "kept", "nothing is made again for what is there"


def test_an_output_that_is_used_up_may_be_missing(tmp_path, records):
    do(step(tmp_path), records)
    step(tmp_path).output.unlink()
    assert do(step(tmp_path, spent=lambda: True), records).state == "kept"
    assert do(step(tmp_path, spent=lambda: False), records).state == "done"


def test_warnings_are_kept(tmp_path, records, caplog):
    def warns(out):
        out.touch()
        logging.getLogger("stmsi").warning("Section %r is odd.", "s1")
        return {}

    outcome = do(step(tmp_path, work=warns), records)
    assert outcome.record.warnings == ["Section 's1' is odd."]
    assert caplog.records == [], "said by whoever carries it out"


@pytest.mark.parametrize("text", ["{", "[]", '{"key": "k1", "later": 1}', ""])
def test_a_damaged_record_is_none(tmp_path, records, text):
    do(step(tmp_path), records)
    records.path("align", "s1").write_text(text)
    assert records.read("align", "s1") is None
    assert do(step(tmp_path), records).state == "done"


def test_records_of_steps_of_all_sections(records):
    records.write(Record("k"), "train")
    assert records.path("train").name == "train.json"
    records.forget("train")
    records.forget("train")
    assert records.read("train") is None


def test_files_are_told_by_size_and_time(tmp_path):
    (tmp_path / "s1.imzML").write_text("a")
    (tmp_path / "s1.ibd").write_text("bb")
    before = files_of(tmp_path / "s1.imzML")
    assert [size for _, size, _ in before] == [1, 2]
    os.utime(tmp_path / "s1.ibd", ns=(1, 1))
    assert files_of(tmp_path / "s1.imzML") != before
    assert len(files_of(tmp_path)) == 2
    assert files_of(None) == []


def test_a_file_is_the_same_from_another_folder(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("s1.imzML.gz", "s1.Ibd"):
        (folder / name).write_text("a")
    before = files_of(folder / "s1.imzML.gz"), files_of(folder)
    assert [name for name, _, _ in before[0]] == ["s1.imzML.gz", "s1.Ibd"]
    monkeypatch.chdir(folder)
    assert (files_of(Path("s1.imzML.gz")), files_of(Path())) == before
    (tmp_path / "link.imzML.gz").symlink_to(folder / "s1.imzML.gz")
    assert [name for name, _, _ in files_of(tmp_path / "link.imzML.gz")] == ["link.imzML.gz", "s1.Ibd"]
