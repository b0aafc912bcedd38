"""`broker_transport_options`: defaults, units, and what is said of a name or a value that cannot be meant."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from bullmq_kombu.errors import BadInput
from bullmq_kombu.options import KOMBU_LEVEL, REMOVE_ON_COMPLETE, REMOVE_ON_FAIL, WITHOUT_MEANING, Options, check_options


def test_the_defaults_are_bullmqs() -> None:
    options = check_options({})

    assert options == Options()
    assert options.prefix == "bull"
    assert (options.lock_ms, options.stalled_ms, options.max_stalled_count, options.drain_delay) == (30_000, 30_000, 1, 5.0)
    assert options.max_len_events == 10_000
    assert (options.limiter_max, options.limiter_ms, options.metrics_points) == ("", "", None)
    assert options.skip_version_check is False


def test_celerys_own_jobs_are_kept_as_the_contract_says() -> None:
    assert REMOVE_ON_COMPLETE == {"age": 24 * 3600, "count": 1000}
    assert REMOVE_ON_FAIL == {"age": 7 * 24 * 3600, "count": 5000}


def test_times_are_seconds() -> None:
    options = check_options({"lock_duration": 1.5, "stalled_interval": 2, "limiter": {"max": 3, "duration": 0.5}})

    assert (options.lock_ms, options.stalled_ms, options.limiter_max, options.limiter_ms) == (1500, 2000, 3, 500)


def test_the_shortest_time_is_a_millisecond() -> None:
    options = check_options({"lock_duration": 1e-9, "stalled_interval": 1e-9, "limiter": {"max": 1, "duration": 1e-9}})

    assert (options.lock_ms, options.stalled_ms, options.limiter_ms) == (1, 1, 1), "0 is no expiry that Redis takes"


def test_locks_are_renewed_long_before_they_expire() -> None:
    assert check_options({}).renew_after == 5.0
    assert check_options({"lock_renew_time": 6, "lock_duration": 30}).renew_after == 2.0


@pytest.mark.parametrize(("metrics", "points"), [(60, 60), ({"max_data_points": 60}, 60), (0, None), ({"max_data_points": 0}, None)])
def test_metrics(metrics: Any, points: int | None) -> None:
    assert check_options({"metrics": metrics}).metrics_points == points


def test_none_means_the_default() -> None:
    assert check_options(dict.fromkeys(("prefix", "lock_duration", "limiter", "connection"))) == Options()


def test_a_timeout_may_be_taken_away() -> None:
    options = check_options({"socket_timeout": None, "socket_connect_timeout": None})

    assert options.socket_timeout is None
    assert options.socket_connect_timeout is None


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lock_durations", "lock_duration"),
        ("stalledInterval", "stalled_interval"),
        ("prefx", "prefix"),
        ("remove_on_complet", "remove_on_complete"),
    ],
)
def test_an_unknown_option_is_a_warning_with_the_nearest_name(name: str, near: str) -> None:
    with pytest.warns(UserWarning, match=f"unknown broker transport option '{name}': did you mean '{near}'"):
        assert check_options({name: 1}) == Options()


def test_an_option_like_no_other_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"unknown broker transport option 'zzz'$"):
        check_options({"zzz": 1})


def test_the_options_of_kombu_and_of_its_redis_transport_are_no_mistake() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_options(dict.fromkeys(KOMBU_LEVEL | WITHOUT_MEANING, 1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lock_duration", "30"), ("lock_duration", True), ("lock_duration", 0), ("lock_duration", -1),
        ("lock_duration", float("nan")),
        ("lock_duration", float("inf")), ("lock_renew_time", 0), ("lock_renew_time", 30), ("stalled_interval", 0),
        ("stalled_interval", "1m"),
        ("drain_delay", 0), ("drain_delay", []), ("socket_timeout", "x"), ("socket_timeout", 0), ("socket_connect_timeout", -1),
        ("health_check_interval", "x"), ("max_stalled_count", -1), ("max_stalled_count", 1.5), ("max_stalled_count", True),
        ("max_retries_per_request", -1), ("max_retries_per_request", "none"), ("max_len_events", 1.0), ("max_connections", -1),
        ("min_other_sentinels", "1"), ("prefix", ""), ("prefix", 5), ("queue_order_strategy", "random"), ("queue_order_strategy", 1),
        ("client_name", "two words"), ("client_name", 5), ("limiter", 5), ("limiter", {}), ("limiter", {"max": 1}),
        ("limiter", {"max": 0, "duration": 1}), ("limiter", {"max": 1, "duration": -1}), ("limiter", {"max": "1", "duration": 1}),
        ("limiter", {"max": 1, "duration": True}), ("limiter", {"max": 1, "duration": 1, "group": 1}),
        ("remove_on_complete", "all"), ("remove_on_complete", {"days": 1}), ("remove_on_fail", {"age": "1d"}), ("remove_on_fail", [5]),
        ("remove_on_fail", {"count": 1.5}), ("remove_on_complete", {"age": 10, "limit": 2.5}), ("remove_on_complete", {"count": True}),
        ("remove_on_complete", {"age": float("nan")}), ("remove_on_complete", 1.5),
        ("metrics", "60"), ("metrics", True), ("metrics", -1), ("metrics", {"points": 5}), ("metrics", {"max_data_points": "5"}),
        ("skip_version_check", "yes"), ("skip_version_check", 1), ("socket_keepalive", "yes"), ("socket_keepalive_options", 5),
        ("master_name", 5), ("sentinel_kwargs", "x"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_an_error_that_names_the_option(name: str, value: Any) -> None:
    with pytest.raises(BadInput, match=name):
        check_options({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("remove_on_complete", True), ("remove_on_complete", False), ("remove_on_complete", 0),
        ("remove_on_fail", {"age": 1.5, "count": 3}), ("prefix", "{bull}"), ("prefix", "a:b"), ("max_stalled_count", 0),
        ("max_retries_per_request", 0),
        ("queue_order_strategy", "sorted"),
        ("queue_order_strategy", "priority"), ("client_name", "web-1"), ("drain_delay", 0.1), ("socket_keepalive", True),
        ("sentinel_kwargs", {"password": "x"}), ("master_name", "mymaster"), ("socket_keepalive_options", {1: 2}),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_value_that_can_be_meant_is_taken_as_it_is(name: str, value: Any) -> None:
    assert getattr(check_options({name: value}), name) == value


def test_another_prefix_before_every_key_is_refused() -> None:
    with pytest.raises(BadInput, match="use the option 'prefix' instead"):
        check_options({"global_keyprefix": "app:"})
    assert check_options({"global_keyprefix": ""}) == Options()


def test_a_client_to_share_is_taken_as_it_is() -> None:
    client = object()

    assert check_options({"connection": client}).connection is client


def test_what_is_printed_of_options_has_no_secrets() -> None:
    class Client:
        def __repr__(self) -> str:
            return "s3cret"

    options = check_options({"sentinel_kwargs": {"password": "s3cret"}, "connection": Client(), "prefix": "{shop}"})

    assert "s3cret" not in repr(options)
    assert "{shop}" in repr(options)
    with pytest.raises(BadInput, match="'sentinel_kwargs' must be a dictionary, not a str") as caught:
        check_options({"sentinel_kwargs": "password=s3cret"})
    assert "s3cret" not in str(caught.value)
