"""The command line: ``collamo prepare | convert | train | merge | ask | generate | evaluate |
compare | judge | ablate | doctor``.

Data goes to stdout, everything else to stderr. An error is one line, ``error: …``, and an exit
code: 0 ok, 1 run time, 2 usage, 3 too many rejected rows, 4 missing dependency or weights, 130
Ctrl-C. Every heavy import happens inside the command that needs it: ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from collamo.errors import CollamoError, MissingDependencyError, UsageError, suggest

#: Errors of writing that mean there is no room: disk, quota, largest file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    name="collamo",
    help="Relation-aware molecular language models: prepare data, train, ask.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Where `make demo` leaves its models, and what a checkpoint folder holds at least.
DEMO_CHECKPOINTS = ("demo/stage2/final", "demo/stage1/final")
CHECKPOINT_FILES = ("config.json", "adapter_config.json")
SPLITS = ("train", "validation", "test")

CheckpointOption = Annotated[
    Optional[Path],  # noqa: UP045 - older typer cannot read Path | None
    typer.Option(
        envvar="COLLAMO_CHECKPOINT",
        help="Folder of the trained model. Default: the newest in demo/.",
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Questions answered together.")]
TokensOption = Annotated[int, typer.Option(min=1, help="Longest answer [tokens].")]
TimeOption = Annotated[
    float, typer.Option(min=0.1, help="Longest time for one conformer [s]; then 3D is left out.")
]
WorkersOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="Worker processes. Default: one per processor."),
]


def main() -> None:
    """Run the command line and leave with its exit code."""
    import warnings

    # What libraries will rename says nothing to who types a command.
    warnings.filterwarnings("ignore", category=FutureWarning)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code. ``--debug`` shows the traceback of an error."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    debug = "--debug" in arguments[:end]
    arguments = [a for i, a in enumerate(arguments) if a != "--debug" or i > end]
    try:
        result = app(args=arguments, prog_name="collamo", standalone_mode=False)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output has gone (`collamo doctor | head`); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _fail(*_explain(error))
    code = result if isinstance(result, int) else 0
    return _fail("interrupted", 130) if code == 130 else code


def _fail(message: str, code: int) -> int:
    # One line, whatever the message holds.
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _explain(error: Exception) -> tuple[str, int]:
    """Return (message, exit code) for any exception that reached the top."""
    if isinstance(error, CollamoError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # typer's own: unknown option, missing argument
        return error.format_message(), 2
    if isinstance(error, typer.Abort):
        return "aborted", 130
    if isinstance(error, ModuleNotFoundError):
        return f"package {error.name!r} is not installed; `collamo doctor` says what it gives", 4
    if isinstance(error, OSError) and error.errno in FULL:
        return (
            f"{error.filename or 'a file'} cannot be written: {os.strerror(error.errno)}; make "
            "room and run the same command again",
            1,
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror}", 1
    return f"{type(error).__name__}: {error} (--debug shows where)", 1


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", is_eager=True)
    ] = False,
) -> None:
    """Relation-aware molecular language models: prepare data, train, ask."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("collamo").setLevel(logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _named(*names: str) -> list[str]:
    """Return what `names` holds once commas inside each are read as separators."""
    return [part.strip() for name in names for part in name.split(",") if part.strip()]


@app.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help="nci (inside RDKit) or a CSV, TSV, JSONL, SMI or SDF file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    conformers: Annotated[bool, typer.Option(help="Embed conformers where none is given.")] = True,
    force_field_steps: Annotated[
        int, typer.Option(min=0, help="Longest minimisation of a conformer [steps].")
    ] = 200,
    seed: Annotated[int, typer.Option(help="Of conformers, splits and questions.")] = 0,
    workers: WorkersOption = None,
    time_limit: TimeOption = 30.0,
    memory_limit: Annotated[
        float, typer.Option(min=0.01, help="Most memory of a worker [GiB]; only on Linux.")
    ] = 4.0,
    max_reject_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Rejected share of rows that is too much.")
    ] = 0.05,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Only the first so many rows."),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Rows per shard.")] = 1000,
    smiles_column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Column of the molecules, where it is not recognised."),
    ] = None,
    caption_column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Column of given captions."),
    ] = None,
    iupac_column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Column of IUPAC names."),
    ] = None,
    measured_columns: Annotated[
        str, typer.Option(help="Numeric columns, by commas; logS:log mol/L adds a unit.")
    ] = "",
    encode: Annotated[
        bool,
        typer.Option(
            "--encode",
            help="Store what frozen encoders say of each molecule; training then skips them.",
        ),
    ] = False,
    unimol: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Of --encode: Uni-Mol weights for 3D, the ones training will be given."),
    ] = None,
    gin: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Of --encode: GIN weights for 2D, likewise."),
    ] = None,
    encode_layers: Annotated[
        int, typer.Option(min=1, help="Of --encode: the projector's num_layers; sets the levels.")
    ] = 5,
    encode_dtype: Annotated[
        str, typer.Option(help="Of --encode: float16, or float32 at twice the size.")
    ] = "float16",
) -> None:
    """Turn a source of molecules into shards, splits and questions."""
    if encode and unimol is None and gin is None:
        raise UsageError("--encode needs weights: give --unimol FILE, --gin FILE or both")
    if not encode and (unimol or gin):
        raise UsageError("--unimol and --gin are of --encode; add it")
    from collamo.data.prepare import prepare as prepare_source

    manifest = prepare_source(
        source,
        out,
        conformers=conformers,
        force_field_steps=force_field_steps,
        seed=seed,
        workers=workers,
        time_limit=time_limit,
        memory_limit=memory_limit,
        max_reject_rate=max_reject_rate,
        limit=limit,
        shard_size=shard_size,
        smiles_column=smiles_column,
        caption_column=caption_column,
        iupac_column=iupac_column,
        measured_columns=tuple(_named(measured_columns)),
    )
    rows, splits = manifest.rows, manifest.splits
    print(
        f"{rows['in']} rows: {rows['ok']} ok, {rows['rejected']} rejected; "
        + ", ".join(f"{count} {name}" for name, count in splits.items())
    )
    if rows["rejected"]:
        print(f"note: reasons for the rejected rows: {out / 'rejected.jsonl'}", file=sys.stderr)
    for element, found in manifest.unknown_elements.items():
        print(
            f"note: Uni-Mol's dictionary lacks {element} ({found['atoms']} atoms in "
            f"{found['molecules']} molecules): the 3D encoder reads it as [UNK]",
            file=sys.stderr,
        )
    if encode:
        _encode(out, rows["ok"], unimol, gin, encode_layers, encode_dtype)


def _encode(out, molecules, unimol, gin, layers, dtype) -> None:
    from collamo.model.encoding import encode_prepared

    passes = (unimol is not None) + (gin is not None)
    with _progress("encoding", passes * molecules) as advance:
        stored = encode_prepared(
            out, unimol=unimol, gin=gin, layers=layers, dtype=dtype, progress=advance
        )
    for modality, outputs in stored.items():
        encoding = outputs.encoding
        levels = ", ".join(map(str, encoding.levels))
        print(
            f"{modality}: levels {levels} of {encoding.channels} channels in {encoding.dtype}, "
            f"{outputs.size / 2**20:.1f} MiB, weights {encoding.weights[:12]}"
        )


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Any key of the recipe is an option too: --llm NAME_OR_PATH, --unimol PATH, --gin PATH, "
    "--training.learning_rate 1e-4, --data my/data.",
)
def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, such as configs/stage1.yaml.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest whole checkpoint, if any.")
    ] = False,
) -> None:
    """Train one stage: the small language model, the alignment, or the instruction tuning."""
    from collamo.training.recipe import load_recipe

    loaded = load_recipe(recipe, context.args)
    from collamo.training.stages import train as train_stage

    # transformers prints its progress to stdout; stdout is for data.
    with contextlib.redirect_stdout(sys.stderr):
        final = train_stage(loaded, resume=resume)
    print(final)


@app.command()
def convert(
    weights: Annotated[
        Path, typer.Argument(help="Published Uni-Mol or GIN weights: .pt, .pth or .safetensors.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Turn a published encoder into safetensors with its configuration. Pickles never run."""
    from collamo.model.checkpoints import convert_encoder

    config = convert_encoder(weights, out).config
    sizes = f"{config.num_layers} layers of {config.hidden_size} channels"
    print(f"{out}: {config.model_type.removeprefix('collamo_')}, {sizes}")


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder that stage 2 wrote: <output>/adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Turn a base of 4 bits into half precision first.")
    ] = False,
) -> None:
    """Fold LoRA into the language model: one folder that needs neither peft nor the base."""
    from collamo.model.merge import merge as merge_adapter

    with contextlib.redirect_stdout(sys.stderr):
        merged = merge_adapter(adapter, out, dequantize)
    print(merged)


def find_checkpoint(given: Path | None) -> Path:
    """Return the checkpoint folder to use; MissingDependencyError where there are no weights."""
    if given is None:
        demos = [Path(name) for name in DEMO_CHECKPOINTS if _is_checkpoint(Path(name))]
        if not demos:
            raise MissingDependencyError(
                "no trained weights here: run `make demo`, or give --checkpoint or set "
                "COLLAMO_CHECKPOINT"
            )
        return max(demos, key=lambda folder: folder.stat().st_mtime)
    if not _is_checkpoint(given):
        problem = "has no config.json" if given.is_dir() else "does not exist"
        if given.is_file():
            problem = "is a file: give its folder"
        raise MissingDependencyError(
            f"checkpoint {given} {problem}; train one (`make demo`) or give another --checkpoint"
        )
    return given


def _is_checkpoint(folder: Path) -> bool:
    return any((folder / name).is_file() for name in CHECKPOINT_FILES)


def load_model(folder: Path):
    """Return (model, processor) of a checkpoint; MissingDependencyError where it cannot be read."""
    from transformers.utils import logging as transformers_logging

    from collamo.model.checkpoints import load_checkpoint

    transformers_logging.disable_progress_bar()
    return load_checkpoint(folder)


def _check_question(question: str) -> str:
    if not question.strip():
        raise UsageError("the question is empty")
    return question


@app.command()
def ask(
    smiles: Annotated[str, typer.Argument(help="The molecule: SMILES or SELFIES.")],
    question: Annotated[str, typer.Argument(help="A question about it.")],
    checkpoint: CheckpointOption = None,
    max_new_tokens: TokensOption = 128,
    time_limit: TimeOption = 30.0,
) -> None:
    """Answer one question about one molecule."""
    from collamo.chem.conformer import embed_conformer_limited
    from collamo.chem.features import featurize, unknown_to_unimol
    from collamo.chem.molecule import parse_molecule

    _check_question(question)
    molecule = parse_molecule(smiles)
    folder = find_checkpoint(checkpoint)
    conformer = embed_conformer_limited(molecule, seconds=time_limit)
    if conformer.coordinates is None:
        print(f"note: answered without 3D: {conformer.reason}", file=sys.stderr)
    features = featurize(molecule, conformer)
    if conformer.coordinates is not None:
        for element in unknown_to_unimol(features.atom_features):
            print(f"note: the 3D encoder reads {element} as [UNK]", file=sys.stderr)
    model, processor = load_model(folder)
    from collamo.inference.answers import answer

    pairs = [(features, question)]
    print(answer(model, processor, pairs, max_new_tokens=max_new_tokens)[0])


@app.command()
def generate(
    questions: Annotated[
        Path, typer.Argument(help="CSV, TSV or JSONL file with a molecule and a question per row.")
    ],
    checkpoint: CheckpointOption = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where to write: .csv, .tsv or .jsonl. Default: JSONL on stdout."),
    ] = None,
    smiles_column: Annotated[str, typer.Option(help="Column of the molecules.")] = "smiles",
    question_column: Annotated[str, typer.Option(help="Column of the questions.")] = "question",
    batch_size: BatchOption = 32,
    max_new_tokens: TokensOption = 128,
    time_limit: TimeOption = 30.0,
    workers: WorkersOption = None,
) -> None:
    """Answer a file of questions. Every row comes back; a bad one with its reason."""
    from collamo.inference import question_files as files

    if out is not None:
        files.check_format(out)
    rows = files.read_questions(questions, smiles_column, question_column)
    folder = find_checkpoint(checkpoint)
    with _progress("molecules", len(rows)) as advance:
        features = files.read_molecules(rows, time_limit, advance, workers)
    if any(row.reason is None for row in rows):
        model, processor = load_model(folder)
        options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
        with _progress("answers", len(rows)) as advance:
            files.answer_rows(rows, features, model, processor, progress=advance, **options)
    files.write_answers(rows, out)
    bad = sum(row.reason is not None for row in rows)
    print(f"{len(rows)} rows: {len(rows) - bad} answered, {bad} with errors", file=sys.stderr)


@contextlib.contextmanager
def _progress(what: str, total: int | None):
    """Show a progress bar on stderr; yields a function that takes how many more are done.

    `total` None: it is not known how many there are.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


DataOption = Annotated[Path, typer.Option(help="Folder written by `collamo prepare`.")]
SplitOption = Annotated[str, typer.Option(help="train, validation or test.")]
LimitOption = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(min=1, help="At most so many questions per task, drawn with the seed."),
]
RelianceOption = Annotated[
    bool, typer.Option(help="Also ask with less of each molecule, and with another of its size.")
]
DiagnoseOption = Annotated[
    bool, typer.Option("--diagnose", help="Also look into the attention: collapsed, dead, alike?")
]
SeedOption = Annotated[int, typer.Option(help="Of the wrong molecules, limit and intervals.")]
PredictionsOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Score this TSV, CSV or JSONL file of answers instead of a model."),
]
TaskOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Of --predictions: captions, molecules, iupac, motifs or property."),
]
TokenizerOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        help="Of texts: scibert:VOCAB_PATH, llm:FOLDER_OR_NAME, 13a or whitespace. Default for a "
        "model: 13a."
    ),
]
WordnetOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Folder or zip of WordNet 3.0, for METEOR. Never downloaded."),
]
UnitOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Of --predictions: an energy is also reported in Hartree and eV."),
]
TrainMeanOption = Annotated[
    str,
    typer.Option(help="Of --predictions: for answers without a number: 1.5, or gap=0.25,mu=2.7."),
]
EntitiesOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="For CHARM and RCHARM of captions: offline, bern2:URL or file:PATH."),
]
EntitiesAnswersOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Where answers of bern2 are kept. Default: OUT/entities.jsonl."),
]
EntitiesLimitOption = Annotated[
    float, typer.Option(min=0.01, help="Requests to bern2. The public server allows 180.")
]
ONLY_PREDICTIONS = ("task", "unit", "train_mean")
ONLY_MODEL = (
    *("checkpoint", "data", "split", "limit", "reliance", "diagnose"),
    *("batch_size", "max_new_tokens", "seed"),
)


@app.command()
def evaluate(
    context: typer.Context,
    checkpoint: CheckpointOption = None,
    data: DataOption = Path("demo/data"),
    split: SplitOption = "test",
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("evaluation"),
    limit: LimitOption = None,
    reliance: RelianceOption = True,
    diagnose: DiagnoseOption = False,
    batch_size: BatchOption = 64,
    max_new_tokens: TokensOption = 128,
    seed: SeedOption = 0,
    predictions: PredictionsOption = None,
    task: TaskOption = None,
    tokenizer: TokenizerOption = None,
    wordnet: WordnetOption = None,
    unit: UnitOption = None,
    train_mean: TrainMeanOption = "",
    entities: EntitiesOption = None,
    entities_answers: EntitiesAnswersOption = None,
    entities_per_minute: EntitiesLimitOption = 150,
) -> None:
    """Score a model on a split against two baselines, or a file of predictions by published
    metrics. A model's evaluation that was cut off goes on when it is run again."""
    kind = (entities or "").partition(":")[0]
    if kind != "bern2":
        asking = ("entities_answers", "entities_per_minute")
        _refuse(context, asking, "with --entities bern2:URL")
    looking = _entities(entities, entities_answers or out / "entities.jsonl", entities_per_minute)
    if predictions is not None:
        _refuse(context, ONLY_MODEL, "without --predictions")
        texts = (tokenizer, wordnet)
        _evaluate_predictions(predictions, task, texts, unit, train_mean, looking, out)
        return
    _refuse(context, ONLY_PREDICTIONS, "with --predictions FILE")
    if kind == "file":
        raise UsageError(
            "--entities file:PATH: only with --predictions FILE, whose rows it is about"
        )
    _check_split(split)
    chosen = {"split": split, "limit": limit, "reliance": reliance, "diagnose": diagnose}
    chosen |= {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "seed": seed}
    chosen |= {"wordnet": wordnet} | ({"tokenizer": tokenizer} if tokenizer else {})
    _evaluate_split(checkpoint, data, out, chosen, looking)


@contextlib.contextmanager
def _entities(spec: str | None, answers: Path, per_minute: float):
    """Open the extractor that `spec` names; yields None where there is none."""
    if spec is None:
        yield None
        return
    from collamo.evaluation.entities.extractor import load_extractor
    from collamo.evaluation.service import Limits

    with load_extractor(spec, answers, Limits(per_minute=per_minute)) as extractor:
        yield extractor


def _refuse(context: typer.Context, names: tuple[str, ...], where: str) -> None:
    """Refuse options that would have no effect."""
    given = [n for n in names if context.get_parameter_source(n).name == "COMMANDLINE"]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"{options}: only {where}")


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UsageError(
            f"--split {split!r} is none of {', '.join(SPLITS)}{suggest(split, SPLITS)}"
        )


def _evaluate_split(checkpoint: Path | None, data: Path, out: Path, chosen: dict, looking) -> None:
    from collamo.data.shards import PreparedData
    from collamo.model.encoding import need_bond_directions

    prepared = PreparedData.open(data)
    folder = find_checkpoint(checkpoint)
    model, processor = load_model(folder)
    need_bond_directions(prepared, model.config.gin_config)
    from rich.console import Console

    from collamo.evaluation.examine.split import count_questions, evaluate
    from collamo.evaluation.examine.split_report import show

    total = count_questions(prepared, chosen["split"], chosen["limit"], chosen["reliance"])
    about = {"checkpoint": str(folder), "data": str(data)}
    with _progress("answers", total) as advance, looking as entities:
        report = evaluate(
            *(model, processor, prepared),
            **chosen,
            entities=entities,
            about=about,
            out=out,
            progress=lambda _, count: advance(count),
        )
    show(report, Console())
    print(f"written to {out}: report.json, .md, .html and rows.parquet", file=sys.stderr)


def _evaluate_predictions(path, task, texts, unit, train_mean, looking, out) -> None:
    from collamo.evaluation.score.predictions import TASKS, Options, evaluate_predictions

    if task is None:
        raise UsageError(f"--predictions needs --task: one of {', '.join(TASKS)}")
    if not path.is_file():
        raise UsageError(f"--predictions {path}: no such file")
    means = dict(_train_mean(part) for part in _named(train_mean))
    with _progress("rows", None) as advance, looking as entities:
        chosen = Options(task, *texts, unit, means, entities)
        report = evaluate_predictions(path, chosen, out, progress=advance)
    for name, value in report["scores"].items():
        if not isinstance(value, dict):
            print(f"{name}\t{value:.4f}")
    print(_count_line(report["counts"]), file=sys.stderr)
    if "entity_counts" in report:
        print(f"entities: {_count_line(report['entity_counts'])}", file=sys.stderr)
    for name, reason in report["manifest"]["absent"].items():
        print(f"note: no {name}: {reason}", file=sys.stderr)
    print(f"written to {out}: report.json, .md, .html and rows.parquet", file=sys.stderr)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="Folder of `collamo evaluate` or `collamo judge`.")],
    b: Annotated[Path, typer.Argument(help="Another, of the same questions.")],
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
) -> None:
    """Compare two evaluations, of models or of files, or two judgements: paired intervals, and the
    rows that changed."""
    from collamo.evaluation.comparison import compare as compare_folders

    found = compare_folders(a, b, seed=seed)
    print("score\ta\tb\tb-a\tlow\thigh\tclear")
    for each in found.differences:
        change = each.change
        values = (each.a, each.b, change.value, change.low, change.high)
        numbers = "\t".join(f"{value:.4f}" for value in values)
        print(f"{each.name}\t{numbers}\t{'yes' if change.clear else 'no'}")
    shown = ", ".join(map(str, found.changed[:20])) + (" …" if len(found.changed) > 20 else "")
    print(f"{len(found.changed)} of {found.rows} predictions differ: {shown}", file=sys.stderr)


@app.command()
def judge(
    predictions: Annotated[
        Path, typer.Argument(help="TSV, CSV or JSONL of captions, as for `collamo evaluate`.")
    ],
    judge: Annotated[
        str, typer.Option(help="OpenAI-compatible endpoint, such as http://localhost:8000/v1.")
    ],
    judge_model: Annotated[str, typer.Option(help="Its model.")],
    other: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Argument(help="Another file for the same references: which of the two is better?"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("judgement"),
    prompt: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Prompt and rubric (YAML). Default: the one that comes with collamo."),
    ] = None,
    answers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where answers are kept. Default: OUT/answers.jsonl."),
    ] = None,
    reasks: Annotated[
        int, typer.Option(min=0, help="How often an unreadable answer is asked for again.")
    ] = 2,
    price_in: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Of 1,000 tokens of prompt."),
    ] = None,
    price_out: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Of 1,000 tokens of answer."),
    ] = None,
    per_minute: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.01, help="Requests at most. Default: no limit."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at one time.")] = 4,
    attempts: Annotated[int, typer.Option(min=1, help="Of a request that fails.")] = 5,
    timeout: Annotated[float, typer.Option(min=0.1, help="Of a request [s].")] = 60,
) -> None:
    """Have captions judged by a language model, or two files compared. Run again to go on.

    The key, if the endpoint wants one, is read from COLLAMO_JUDGE_KEY.
    """
    from collamo.evaluation.judge.files import judge_predictions
    from collamo.evaluation.judge.model import JudgeOptions
    from collamo.evaluation.judge.rubric import PROMPT, Rubric
    from collamo.evaluation.service import Limits

    for path in filter(None, (predictions, other)):
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
    if (price_in is None) != (price_out is None):
        raise UsageError("--price-in and --price-out go together")
    options = JudgeOptions(
        judge,
        judge_model,
        Rubric.load(prompt or PROMPT),
        Limits(per_minute, concurrency, timeout, attempts),
        reasks,
        None if price_in is None else (price_in, price_out),
        os.environ.get("COLLAMO_JUDGE_KEY"),
    )
    with _progress("rows", None) as advance:
        report = judge_predictions(
            predictions, options, out, other=other, answers=answers, progress=advance
        )
    for name, value in report["scores"].items():
        print(f"{name}\t{value:.4f}")
    print(_count_line(report["counts"]), file=sys.stderr)
    if report["counts"]["failed"]:
        print("note: the same command asks again for what failed", file=sys.stderr)
    spent = ", ".join(f"{count} {name}" for name, count in report["usage"]["this_run"].items())
    print(f"this run: {spent}", file=sys.stderr)
    print(f"written to {out}: report.json, report.md and rows.parquet", file=sys.stderr)


def _count_line(counts) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _train_mean(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise UsageError(f"--train-mean {text!r} is no number; write 1.5 or name=1.5") from None


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Options of `collamo train` hold for every variant: --llm NAME_OR_PATH, --unimol PATH, "
    "--gin PATH, --data my/data.",
)
def ablate(
    context: typer.Context,
    ablation: Annotated[
        Path, typer.Argument(help="YAML of variants, such as configs/ablations/relations.yaml.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for models, reports and table.md.")],
    split: SplitOption = "test",
    limit: LimitOption = None,
    batch_size: BatchOption = 64,
    max_new_tokens: TokensOption = 128,
) -> None:
    """Train and evaluate variants of a model, and draw the table. Run again to go on."""
    from collamo.ablation import load_ablation, run_ablation

    _check_split(split)
    loaded = load_ablation(ablation)
    with contextlib.redirect_stdout(sys.stderr):
        table = run_ablation(
            loaded,
            out,
            context.args,
            split=split,
            limit=limit,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )
    print(table)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="With --plan the options of `collamo train` hold: --llm NAME_OR_PATH, --unimol PATH, "
    "--gin PATH.",
)
def doctor(
    context: typer.Context,
    plan: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Recipe: say what it trains, the memory it takes, and where it fits."),
    ] = None,
    gpu: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of --plan: h100, a100-40gb … or GiB. Default: the one here."),
    ] = None,
) -> None:
    """Say what is installed, what is missing, and what each missing piece would give."""
    if plan is not None:
        return _show_plan(plan, gpu, context.args)
    if gpu is not None:
        raise UsageError("--gpu: only with --plan RECIPE")
    if context.args:
        raise UsageError(f"{context.args[0]}: only with --plan RECIPE")
    from rich.console import Console
    from rich.table import Table

    from collamo.doctor import about, examine, healthy

    checks = examine()
    table = Table(title=about(), title_justify="left")
    for column in ("", "what", "found", "gives", "to get it"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark = "ok" if check.found else "MISSING" if check.required else "–"
        fix = "" if check.found else check.fix
        table.add_row(mark, check.name, check.found or "–", check.gives, fix)
    Console(markup=False).print(table)  # the brackets of 'collamo[train]' are no markup
    if not healthy(checks):
        missing = [c.name for c in checks if c.required and not c.found]
        raise MissingDependencyError(f"required packages are missing: {', '.join(missing)}")


def _show_plan(path: Path, gpu: str | None, overrides: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from collamo.doctor import gpu_memory, plan_rows, plan_summary
    from collamo.training.plan import plan_file

    memory = gpu_memory(gpu)
    planned = plan_file(path, overrides)
    title = f"{planned.title}; memory in GiB, nothing was loaded"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("part", no_wrap=True)
    for column in ("parameters", "trained", "weights", "gradients", "optimizer"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in plan_rows(planned):
        table.add_row(*row)
    Console(markup=False).print(table)
    print("\n".join(plan_summary(planned, memory)))
