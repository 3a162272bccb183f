"""`collamo doctor` on good and bad input: exit code, one clear line, nothing lost."""


def test_doctor_names_what_is_there_and_what_is_missing(collamo):
    code, out, err = collamo("doctor")
    assert (code, err) == (0, "")
    for name in ("torch", "rdkit", "peft", "compiled kernels", "C++ compiler", "CUDA GPU"):
        assert name in out
    assert "collamo[" in out.replace("\n", "") or "–" not in out


def test_doctor_says_why_there_are_no_compiled_kernels(collamo, monkeypatch):
    import collamo_kernels

    absent = {"extension": False, "why_absent": "the build failed: no such header; apt install it"}
    monkeypatch.setattr(collamo_kernels, "build_info", lambda: absent)
    monkeypatch.setenv("COLUMNS", "300")  # nothing is folded
    code, out, _ = collamo("doctor")
    assert code == 0
    row = out[out.index("compiled kernels") : out.index("C++ compiler")]
    assert "the build failed: no such header; apt install it" in row

    def broken():
        raise OSError("undefined symbol")

    monkeypatch.setattr(collamo_kernels, "build_info", broken)
    code, out, _ = collamo("doctor")
    assert code == 0
    assert "undefined" in out[out.index("compiled kernels") : out.index("C++ compiler")]


def test_doctor_fails_where_something_required_is_missing(collamo, monkeypatch):
    from collamo import doctor

    checks = [doctor.Check("peft", None, "LoRA", "pip install peft", required=True)]
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    code, out, err = collamo("doctor")
    assert code == 4
    assert "MISSING" in out
    assert "required packages are missing: peft" in err


def test_doctor_checks_the_kernels_of_the_gpu_here(collamo, monkeypatch):
    from collamo import doctor

    found = {"float16, width 32, 32": None, "float16, width 32, loop": "dk: error 3 exceeds 0.1"}
    monkeypatch.setattr(doctor, "check_kernels", lambda: found)
    code, out, err = collamo("doctor", "--gpu", "here")
    assert code == 1
    assert "right  float16, width 32, 32\n" in out
    assert "WRONG  float16, width 32, loop: dk: error 3 exceeds 0.1\n" in out
    assert "1 of 2 configurations are wrong on this GPU; they are not taken from now on" in err
    found.popitem()
    assert collamo("doctor", "--gpu", "here")[0] == 0


def test_doctor_without_a_gpu_cannot_check_it(collamo, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = collamo("doctor", "--gpu", "here")
    assert (code, out) == (4, "")
    assert "no NVIDIA GPU answers" in err
