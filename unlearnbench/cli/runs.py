"""The commands on run folders: ``compare``, ``check``, ``import``, ``push``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench import conditions
from unlearnbench.boards.hub import describe, plan_upload, push
from unlearnbench.cli.options import PushOptions, verbose_option
from unlearnbench.errors import OptionError, PrecisionError, ResultError, printable
from unlearnbench.importing import ImportOptions, import_runs
from unlearnbench.lm_eval.tables import utility_table
from unlearnbench.recovery import UTILITY_FLOOR, certificate, reports
from unlearnbench.recovery.compare import compare, open_comparison
from unlearnbench.recovery.overview import overview
from unlearnbench.recovery.policy import Policy, check, exit_status
from unlearnbench.recovery.reports import recovery_table, rows_json
from unlearnbench.util.files import write_text, writing
from unlearnbench.util.text import paint, terminal_width
from unlearnbench.util.validation import read_yaml_model

_CAPTION = """
95% intervals, over samples and, of several seeds, over trainings. *: the change holds after
Holm's correction. recovered: share of what the target, under that condition, knows more.
collapsed: utility below {floor:g}. target forgets: under that condition the target keeps less
than half of its own score, or is not 5 points above the unlearned model: no share."""
_VERDICTS = {0: "pass", 1: "FAIL", 2: "not decided: the lines above say why"}


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--target", required=True, metavar="RUN|FOLDER", help="Runs of the target model.")
@click.option("--retrained", required=True, metavar="RUN|FOLDER", help="Of the retrained model.")
@click.option("--json", "json_file", metavar="FILE", help="Write the rows as JSON.")
@click.option(
    "--utility-floor",
    type=click.FloatRange(0, 1),
    default=UTILITY_FLOOR,
    show_default=True,
    metavar="SHARE",
    help="Below this share of the target's retained knowledge a model counts as collapsed.",
)
@click.option("--figure", metavar="NAME", help="Another figure, as rougeL_recall or Min-20%.")
@click.option("--per-seed", is_flag=True, help="A row for each training, not for each recipe.")
@click.option("--wide", is_flag=True, help="Every figure with its interval, a row a condition.")
@verbose_option
def compare_runs(
    runs: Sequence[str],
    target: str,
    retrained: str,
    json_file: str | None,
    utility_floor: float,
    figure: str | None,
    per_seed: bool,
    wide: bool,
) -> None:
    """Show what quantizing brings back, against the target and the retrained model.

    RUN is a run folder, or a folder with runs below it; each checkpoint needs its run at `none`,
    and the target one under every condition of the others. Trainings of one recipe that differ in
    their seed alone are one row.
    """
    paths = [Path(run) for run in runs], Path(target), Path(retrained)
    opened = open_comparison(*paths, utility_floor, figure=figure)
    utilities = utility_table([*opened.entries, opened.target, opened.retrained])
    rows = compare(opened, per_seed)
    if json_file is not None:
        write_text(Path(json_file), rows_json(rows))
    if wide:
        click.echo(printable(recovery_table(rows)))
        click.echo(_CAPTION.format(floor=opened.floor))
    else:
        click.echo(overview(rows, opened.floor, terminal_width(), paint))
    if utilities:
        click.echo(printable(f"\nGeneral ability, by lm-eval:\n{utilities}"))


@click.command("check")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--policy", "policy_file", metavar="FILE", help="What must hold: policy.yaml.")
@click.option("--target", required=True, metavar="RUN|FOLDER", help="Runs of the target model.")
@click.option("--retrained", required=True, metavar="RUN|FOLDER", help="Of the retrained model.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML.")
@click.option("--summary", metavar="FILE", help="Append a Markdown table, as for GitHub's summary.")
@click.option("--certify", "certify_file", metavar="FILE", help="Write a certificate on a pass.")
@click.option("--verify-certificate", "verify_file", metavar="FILE", help="Check one again.")
def check_runs(
    runs: Sequence[str],
    policy_file: str | None,
    target: str,
    retrained: str,
    junit: str | None,
    summary: str | None,
    certify_file: str | None,
    verify_file: str | None,
) -> int:
    """Hold runs against a policy: exit 0 pass, 1 fail, 2 not decided or bad input.

    An interval's bound decides, not its point. Where GITHUB_ACTIONS is set, what did not pass is
    annotated too.
    """
    paths = [Path(run) for run in runs], Path(target), Path(retrained)
    if (policy_file is None) == (verify_file is None):
        raise OptionError("give --policy FILE, or --verify-certificate FILE, which holds its own")
    advice: list[str] = []
    if policy_file is not None:
        policy = _read_policy(Path(policy_file))
        comparison = open_comparison(*paths, confidence=policy.confidence)
        findings = check(comparison, policy)
        advice = reports.advice(comparison, findings)
        if certify_file is not None and exit_status(findings) == 0:
            passed = certificate.certify(comparison, policy, findings)
            write_text(Path(certify_file), certificate.certificate_json(passed))
    elif certify_file is not None:
        raise OptionError("--certify needs --policy, not --verify-certificate")
    else:
        given = certificate.read_certificate(Path(str(verify_file)))
        findings = certificate.verify_certificate(given, *paths)
    if junit is not None:
        write_text(Path(junit), reports.junit(findings))
    if summary is not None:
        with writing(Path(summary), ResultError, "give another path"):
            Path(summary).parent.mkdir(parents=True, exist_ok=True)
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(reports.summary(findings))
    click.echo(printable(reports.findings_table(findings)))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in reports.github_annotations(findings):
            click.echo(line)
    for line in advice:
        click.echo(printable(f"\n{line}"))
    click.echo(f"\n{_VERDICTS[exit_status(findings)]}")
    return exit_status(findings)


def _read_policy(path: Path) -> Policy:
    policy = read_yaml_model(path, Policy)
    names = dict.fromkeys(_full_name(name) for name in policy.precisions)
    update: dict[str, object] = {"precisions": tuple(names)}
    if isinstance(policy.max_recovered, dict):
        bounds = policy.max_recovered.items()
        update["max_recovered"] = {_full_name(name): bound for name, bound in bounds}
    return policy.model_copy(update=update)


def _full_name(text: str) -> str:
    """A condition's full name; ``unknown`` and names that this version lacks stay as they are."""
    if not re.fullmatch(r"(deployed:)?[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", text):
        raise OptionError("--quant takes a condition's name, as none or bnb-nf4")
    try:
        return conditions.find_condition(text).name
    except PrecisionError:
        return text


@click.command("import")
@click.argument("folder", metavar="DIR")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["muse", "lm-eval", "open-unlearning", "tofu"]),
    required=True,
    help="Whose results they are.",
)
@click.option("--task-prefix", required=True, metavar="NAME", help="news, books or another group.")
@click.option("--out", required=True, metavar="RUN_DIR", help="Where the run folders go.")
@click.option(
    "--quant", default="unknown", show_default=True, metavar="NAME", help="What was measured."
)
@click.option("--include-path", multiple=True, metavar="DIR", help="More task files; repeatable.")
def import_command(
    folder: str, kind: str, task_prefix: str, out: str, quant: str, include_path: Sequence[str]
) -> None:
    """Turn another tool's result folders into runs, rescored from their outputs.

    Writes RUN_DIR/<model>/<condition>/run.json for each model, and shows where our score differs
    from the stated one.
    """
    options = ImportOptions(
        kind,  # type: ignore[arg-type]  # click has checked it
        Path(folder),
        task_prefix,
        Path(out),
        _full_name(quant),
        tuple(map(Path, include_path)),
    )
    for path, result in import_runs(options):
        click.echo(printable(f"{path}: {', '.join(result.tasks)}"))
        differences = result.imported.differences if result.imported else {}
        for name, difference in differences.items():
            click.echo(printable(f"  {name}: ours is {difference:+.6g} of the stated figure"))


@click.command("push")
@click.argument("paths", nargs=-1, required=True, metavar="RUN|ENTRY...")
@click.option("--to", "repo", required=True, metavar="REPO", help="A data set repository.")
@click.option("--dry-run", "dry", is_flag=True, help="Only show what would leave the machine.")
@click.option("--public", is_flag=True, help="A new repository is public, not private.")
def push_command(paths: Sequence[str], repo: str, dry: bool, public: bool) -> None:
    """Push run folders and board entries to the Hugging Face hub.

    A run folder holds its prompts, targets and the model's raw outputs; --dry-run lists what goes.
    """
    given = {"push_to_hub": repo, "push_dry_run": dry, "push_public": public}
    push_paths([Path(path) for path in paths], PushOptions.of(given))


def push_paths(paths: Sequence[Path], options: PushOptions) -> None:
    """Show what leaves the machine, and push it unless that is all that was asked for. Nothing,
    where there is no repository to push to.
    """
    repo = options.push_to_hub
    if repo is None:
        return
    uploads = plan_upload(paths)
    click.echo(printable(describe(uploads, repo, not options.push_public)))
    if options.push_dry_run:
        click.echo("dry run: nothing was sent")
        return
    click.echo(printable(f"pushed: {push(uploads, repo, not options.push_public)}"))
