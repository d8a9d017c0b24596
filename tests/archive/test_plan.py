"""The plan: quotas add up, addresses belong to one shard each, what is read is what was written."""

import json

import pytest

from medray.archive.plan import (
    PLAN,
    Goal,
    Places,
    Plan,
    apportion,
    difference,
    parse_address,
    read_plan,
    write_plan,
)
from medray.errors import DataError, UsageError
from medray.store import Store


def plan(*counts, per_shard=8, **more):
    goals = tuple(Goal(f"c{n}", {f"c{n}": 1}, count) for n, count in enumerate(counts))
    facts = {
        "generator_sha256": "a" * 64,
        "latents_sha256": "b" * 64,
        "classifier_sha256": None,
        "gate_sha256": None,
        "audited": False,
        "min_probability": 0.5,
        "seed": 3,
        "goals": goals,
        "classes": tuple(goal.target for goal in goals),
        "samples_per_shard": per_shard,
        "format": "png",
        "px": 16,
        "channels": 1,
        "name": "test",
        "render": {"device": "cpu", "batch": 16},
    }
    return Plan(**{**facts, **more})


@pytest.mark.parametrize("counts", [(24,), (12, 12), (1, 30, 2), (7, 0, 13), (1, 1, 1, 1, 1, 997)])
def test_quotas_fill_every_shard_and_add_up_to_the_goals(counts):
    made = plan(*counts)
    assert len(made.quotas) == made.shards == -(-sum(counts) // 8)
    assert [sum(column) for column in zip(*made.quotas, strict=True)] == list(counts)
    assert [sum(quota) for quota in made.quotas[:-1]] == [8] * (made.shards - 1)
    assert all(n >= 0 for quota in made.quotas for n in quota)


def test_a_shard_has_the_shares_of_the_whole():
    assert plan(40, 40).quotas == ((4, 4),) * 10
    assert plan(60, 20).quotas == ((6, 2),) * 10


def test_each_address_is_of_one_shard_and_has_a_goal_with_a_quota_there():
    made = plan(10, 3, 7)
    seen = []
    for number in range(made.shards):
        owned = made.addresses(number)
        assert owned == range(32 * number, 32 * (number + 1))
        slots = made.slots(number)
        assert [slots.count(goal) for goal in range(3)] == list(made.quotas[number])
        assert [made.goal_of(index) for index in owned][: len(slots)] == slots
        seen += owned
    assert len(seen) == len(set(seen))
    with pytest.raises(UsageError, match="it has 0 to 95"):
        made.goal_of(96)


def test_slots_are_interleaved_so_that_a_class_does_not_wait_for_another():
    assert plan(4, 4).slots(0) == [0, 1] * 4
    assert plan(6, 2).slots(0) in ([0, 0, 1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0, 1, 0])


def test_an_address_names_generator_latents_seed_and_index():
    assert plan(8).address(17) == f"mr1:{'a' * 12}:{'b' * 12}:3:17"
    assert plan(8, latents_sha256=None).address(17) == f"mr1:{'a' * 12}:prior:3:17"
    assert parse_address(plan(8).address(17)) == ("a" * 12, "b" * 12, 3, 17)


@pytest.mark.parametrize("text", ["", "mr1:a:b:0", "mr2:a:b:0:1", "mr1:a:b:0:x", "mr1:a:b:-1:1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="an address is"):
        parse_address(text)


def test_what_is_read_is_what_was_written(tmp_path):
    made = plan(12, 12)
    write_plan(Store(tmp_path), made, Places("runs/g", None, "runs/c"))
    found, places = read_plan(Store(tmp_path))
    assert found == made
    assert found.hash == made.hash
    assert places == Places("runs/g", None, "runs/c", None)


@pytest.mark.parametrize(
    "field, changed",
    [
        ("seed", 4),
        ("format", "npy"),
        ("render", {"device": "another"}),
        ("goals", []),
        ("gate_sha256", "c" * 64),
        ("audited", True),
    ],
)
def test_a_changed_plan_is_found_out_by_its_hash(tmp_path, field, changed):
    write_plan(Store(tmp_path), plan(12, 12), Places("g"))
    body = json.loads((tmp_path / PLAN).read_text())
    body["plan"][field] = changed
    (tmp_path / PLAN).write_text(json.dumps(body))
    with pytest.raises(DataError, match="hash|cannot be read"):
        read_plan(Store(tmp_path))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"plan": {}}', "\x00"])
def test_what_is_no_plan_is_a_data_error(tmp_path, text):
    (tmp_path / PLAN).write_text(text)
    with pytest.raises(DataError, match="cannot be read"):
        read_plan(Store(tmp_path))


def test_a_folder_without_a_plan_is_no_archive(tmp_path):
    with pytest.raises(UsageError, match="holds no archive"):
        read_plan(Store(tmp_path))


def test_the_difference_of_two_plans_is_said_in_words():
    text = difference(plan(8), plan(8, seed=4, format="npy"))
    assert text == "seed was 3, is 4; format was 'png', is 'npy'"


def test_apportion_is_exact_and_never_takes_more_than_there_is():
    assert apportion([1, 1, 1], 10) == [4, 3, 3]
    assert apportion([5, 1], 3) == [3, 0] or apportion([5, 1], 3) == [2, 1]
    for total in range(1, 12):
        shares = apportion([7, 1, 3], total)
        assert sum(shares) == total
        assert all(share <= have for share, have in zip(shares, [7, 1, 3], strict=True))
