"""Every mistake that newcomers make gets one line that names the place and the remedy, in the words of the field.

``pytest -rP`` of this file prints them.
"""

import pytest

ROWS = "".join(f"u{user},i{(user * 7 + k * 3) % 40},{1000 + k}\n" for user in range(30) for k in range(12))
HEAD = "user_id,item_id,timestamp\n"
FEW = "".join(f"u{user},i{(user + k) % 40},{k}\n" for user in range(30) for k in range(2))
FLEET = "profiles: [{{name: a, memory: {{table_share: {share}}}, budget: {budget}}}]\n"
MARKOV = "{process: markov, states: {low: 0.5, high: 1}, transitions_per_step: {low: [0.9, 0.2], high: [0.1, 0.9]}}"
FILES = {
    "semicolon.csv": (HEAD + ROWS).replace(",", ";").encode(),
    "utf16.csv": (HEAD + ROWS).encode("utf-16"),
    "headless.csv": ROWS.encode(),
    "two.csv": (HEAD + FEW).encode(),
    "three.csv": (HEAD + "u1,i1,1\nu1,i2,2\nu2,i1,3\n").encode(),
    "text.yaml": b"data: events.csv\n",
    "phones.yaml": b"data: {name: ml-100k}\nfleet: {name: phones}\n",
    "percent.yaml": FLEET.format(share="5%", budget="constant").encode(),
    "rows.yaml": FLEET.format(share=0.05, budget=MARKOV).encode(),
}
PEDANTIC = (
    "Input should",
    "input should",
    "valid dictionary",
    "valid tuple",
    "valid string",
    "unable to parse",
    "pydantic",
)


def run_set(*changes: str) -> list[str]:
    return ["run", "ml-100k", "--dry-run", *(word for change in changes for word in ("--set", change))]


MISTAKES = {
    "a budget in bytes": (run_set("evaluation.budgets=10KB"), "budgets: '10KB' is not a list of shares", "[1%, 5%]"),
    "budgets without brackets": (run_set("evaluation.budgets=1%,5%"), "'1%,5%' is not a list", "e.g. [1%, 5%]"),
    "bytes in a list": (run_set("evaluation.budgets=[10KB]"), "budgets[0]: '10KB' is not a share", "e.g. 1%"),
    "a file in place of keys": (["run", "text.yaml"], "text.yaml: data: needs keys", "data: {path: events.csv}"),
    "keys in place of a fleet": (["run", "phones.yaml"], "phones.yaml: fleet: is the name", "fleet: phones"),
    "per cent in a fleet": (["profiles", "sample", "percent.yaml"], "profiles[0].memory.table_share", "write 0.05"),
    "rows that are no probabilities": (["profiles", "sample", "rows.yaml"], "step.low: must sum", "to 1 over"),
    "semicolons": (run_set("data={path: semicolon.csv}"), "semicolon.csv:1: no user column", "save it with commas"),
    "UTF-16": (run_set("data={path: utf16.csv}"), "utf16.csv:1: not UTF-8 text", "save the file as UTF-8"),
    "no header": (run_set("data={path: headless.csv}"), "headless.csv:1:", "add one, e.g. user,item,timestamp"),
    "two items a user": (run_set("data={path: two.csv}"), "no device has a test item", "use data with more"),
    "three rows": (run_set("data={path: three.csv}"), "no device has a test item", "use data with more"),
    "lr": (run_set("refinement.local.lr=0.1"), "unknown key refinement.local.lr", "did you mean 'learning_rate'?"),
    "lr anywhere": (run_set("lr=0.1"), "unknown key lr", "or refinement.local.learning_rate?"),
    "a key as an option": (["run", "ml-100k", "--epochs", "5"], "No such option", "--set pretraining.epochs="),
    "a data set as a scenario": (["run", "yelp2018"], "yelp2018: is a data set", "--set data.name=yelp2018"),
    "two at once": (
        run_set("refinement.round=5", "pretraining.epoch=3"),
        "unknown key pretraining.epoch; did you mean 'epochs'?",
        "unknown key refinement.round; did you mean 'rounds'?",
    ),
    "a contribution of nobody": (run_set("refinement.contribution=mine"), "unknown contribution 'mine'", "extend.md"),
    "an unknown rival": (["compare", "ml-100k", "--rivals", "popular-items"], "unknown popular-items", "choose from"),
    "an unknown tracker": ([*run_set(), "--track", "wandb=x"], "unknown tracker 'wandb'", "known: tensorboard, mlflow"),
    "a tracker without a folder": ([*run_set(), "--track", "mlflow"], "--track mlflow: expected NAME=PLACE", "e.g. "),
    "words for a number": (run_set("refinement.rounds=many"), "refinement.rounds: must be a whole number", "'many'"),
    "below a bound": (run_set("refinement.rounds=-3"), "refinement.rounds: must be 0 or more", "(got -3)"),
    "an unknown word": (run_set("engine.backend=spark"), "must be one of auto, embedded, ray", "(got 'spark')"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_one_line_with_the_place_and_the_remedy(name, command_line, tmp_path, monkeypatch, capfd):
    for file, content in FILES.items():
        (tmp_path / file).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    words, place, remedy = MISTAKES[name]
    code, _, err = command_line(*words)
    print(f"{name}: {err.strip()}")
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("fl-peel: error: ")
    assert place in err
    assert remedy in err
    assert not any(word in err for word in PEDANTIC)
