"""Settings from arguments and the environment."""

import copy
import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

import memtools.config
from memtools import Config, ConfigError
from memtools.config import METERS, monitor_settings
from memtools.errors import ConfigWarning
from memtools.ledger import choose_meter, native_reason
from memtools.monitor import MemoryMonitor
from memtools.units import parse_size

EVERYTHING = {
    "MEMTOOLS_ENABLED": "off",
    "MEMTOOLS_METER": "tracemalloc",
    "MEMTOOLS_NATIVE": "0",
    "MEMTOOLS_LIMIT": "2 GiB",
    "MEMTOOLS_WARNING": "60%",
    "MEMTOOLS_CRITICAL": "80%",
    "MEMTOOLS_CLEANUP_INTERVAL": "12.5",
    "MEMTOOLS_SAMPLE_EVERY": "7",
    "MEMTOOLS_CLUSTER": "redis://user:s3cret@host/0?budget=8GiB",
}


def test_config_of_an_empty_environment_is_empty() -> None:
    config = Config.from_env(environ={})

    assert config == Config()
    assert set(config.to_dict().values()) == {None}
    assert config.monitor() == {}


def test_every_setting_can_come_from_the_environment() -> None:
    config = Config.from_env(environ=EVERYTHING)

    url = EVERYTHING["MEMTOOLS_CLUSTER"]
    assert config == Config(False, "tracemalloc", False, "2 GiB", "60%", "80%", 12.5, 7, cluster=url)


@pytest.mark.parametrize("show", [str, repr, lambda config: json.dumps(config.to_dict())])
def test_password_of_the_cluster_is_not_shown(show) -> None:
    config = Config.from_env(environ=EVERYTHING)

    assert "redis://" in show(config)
    assert "s3cret" not in show(config)
    assert config.monitor()["cluster"] == EVERYTHING["MEMTOOLS_CLUSTER"]


@pytest.mark.parametrize("wrong", ["user:s3cret@host", "/run/app/memory.db", 3])
def test_cluster_that_is_no_url_is_refused(wrong) -> None:
    with pytest.raises(ConfigError, match="cluster=") as caught:
        Config(cluster=wrong)

    assert "s3cret" not in str(caught.value)


def test_environment_is_read_at_the_call(monkeypatch) -> None:
    monkeypatch.setenv("MEMTOOLS_SAMPLE_EVERY", "3")
    first = Config.from_env()
    monkeypatch.setenv("MEMTOOLS_SAMPLE_EVERY", "4")

    assert (first.sample_every, Config.from_env().sample_every) == (3, 4)


def test_argument_precedes_the_environment() -> None:
    config = Config.from_env(environ=EVERYTHING, warning="10%", sample_every=1, enabled=True)

    assert (config.warning, config.sample_every, config.enabled, config.critical) == ("10%", 1, True, "80%")


def test_empty_variable_is_not_set() -> None:
    assert Config.from_env(environ={"MEMTOOLS_LIMIT": "  ", "MEMTOOLS_METER": ""}) == Config()


def test_own_prefix_reads_only_variables_with_it() -> None:
    environ = {"MEMTOOLS_SAMPLE_EVERY": "3", "SHOP_MEMORY_SAMPLE_EVERY": "9"}

    assert Config.from_env("SHOP_MEMORY_", environ=environ).sample_every == 9


def test_unknown_variable_is_refused_without_its_value() -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env(environ={"MEMTOOLS_WARNNIG": "s3cret"})

    assert "MEMTOOLS_WARNNIG" in str(caught.value)
    for name in EVERYTHING:
        assert name in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MEMTOOLS_ENABLED", "perhaps"),
        ("MEMTOOLS_METER", "best"),
        ("MEMTOOLS_NATIVE", "off"),
        ("MEMTOOLS_LIMIT", "512 Mb"),
        ("MEMTOOLS_WARNING", "101%"),
        ("MEMTOOLS_CRITICAL", "-1"),
        ("MEMTOOLS_CLEANUP_INTERVAL", "nan"),
        ("MEMTOOLS_CLEANUP_INTERVAL", "1_000"),
        ("MEMTOOLS_CLEANUP_INTERVAL", "soon"),
        ("MEMTOOLS_SAMPLE_EVERY", "0"),
        ("MEMTOOLS_SAMPLE_EVERY", "1.5"),
        ("MEMTOOLS_SAMPLE_EVERY", "٣"),
    ],
)
def test_invalid_variable_is_refused_by_its_name(name: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env(environ={name: text})

    assert caught.value.name == name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("enabled", 1),
        ("enabled", "yes"),
        ("meter", "best"),
        ("meter", 1),
        ("native", "0"),
        ("limit", -1),
        ("limit", True),
        ("warning", float("nan")),
        ("critical", "many"),
        ("cleanup_interval", -1),
        ("cleanup_interval", float("inf")),
        ("cleanup_interval", "5"),
        ("sample_every", 0),
        ("sample_every", True),
        ("sample_every", "5"),
    ],
)
def test_invalid_argument_is_refused_by_its_name(field: str, value: object) -> None:
    for make in (Config, Config.from_env):
        with pytest.raises(ConfigError) as caught:
            make(**{field: value})
        assert caught.value.name == field


@pytest.mark.parametrize(("warning", "critical"), [("80%", "80%"), ("90%", "80%"), ("1 GiB", "1 GB"), (2000, 1000)])
def test_warning_that_is_not_below_critical_is_refused(warning: int | str, critical: int | str) -> None:
    with pytest.raises(ConfigError, match="less than critical"):
        Config(warning=warning, critical=critical)


def test_error_names_the_variables_of_both_thresholds() -> None:
    with pytest.raises(ConfigError, match=r"MEMTOOLS_WARNING='90%' .* less than MEMTOOLS_CRITICAL"):
        Config.from_env(environ={"MEMTOOLS_WARNING": "90%", "MEMTOOLS_CRITICAL": "80%"})


def test_share_and_size_are_not_compared() -> None:
    assert Config(warning="90%", critical="1 MiB").monitor() == {"warning": "90%", "critical": "1 MiB"}


@pytest.mark.parametrize("prefix", ["", " ", None, 3])
def test_empty_prefix_is_refused(prefix: object) -> None:
    with pytest.raises(ConfigError, match="prefix"):
        Config.from_env(prefix, environ={})


def test_monitor_takes_the_settings_and_keeps_its_defaults() -> None:
    config = Config.from_env(environ=EVERYTHING)

    monitor = MemoryMonitor(**config.monitor())

    assert set(config.monitor()) == {"warning", "critical", "limit", "cleanup_interval", "sample_every", "cluster"}
    assert monitor.statistics().operations == 0
    assert MemoryMonitor(**Config().monitor()).level == 0


@pytest.mark.parametrize("name", METERS)
def test_meters_are_those_of_the_ledger(name: str) -> None:
    if name == "native" and native_reason():
        pytest.skip(f"no native meter here: {native_reason()}")

    assert choose_meter(name).name == name


def test_config_is_frozen_copied_and_pickled() -> None:
    config = Config.from_env(environ=EVERYTHING)

    with pytest.raises(AttributeError):
        config.meter = "native"  # type: ignore[misc]  # frozen for type checkers, too
    assert pickle.loads(pickle.dumps(config)) == copy.copy(config) == copy.deepcopy(config) == config
    assert json.loads(json.dumps(config.to_dict()))["meter"] == "tracemalloc"
    assert dataclasses.replace(config, meter="rss").meter == "rss"
    with pytest.raises(ConfigError, match="meter"):
        dataclasses.replace(config, meter="best")


@given(st.dictionaries(st.sampled_from(sorted(EVERYTHING)), st.text(max_size=20), max_size=4))
def test_any_environment_is_a_config_or_a_config_error(environ: dict[str, str]) -> None:
    try:
        config = Config.from_env(environ=environ)
    except ConfigError:
        return

    if config.limit is not None:
        parse_size(config.limit, percent_of=lambda: 1)
    assert Config(**config.to_dict() | {"cluster": config.cluster}) == config


class TestMonitorSettings:
    """The environment as every monitor reads it."""

    def test_monitor_takes_its_settings_from_the_environment(self, monkeypatch) -> None:
        monkeypatch.setenv("MEMTOOLS_LIMIT", "1Gi")
        monkeypatch.setenv("MEMTOOLS_WARNING", "512Mi")
        monkeypatch.setenv("MEMTOOLS_CRITICAL", "75%")

        seen = MemoryMonitor().statistics()

        assert (seen.warning_bytes, seen.critical_bytes) == (512 * 2**20, 768 * 2**20)

    def test_argument_of_a_monitor_wins(self, monkeypatch) -> None:
        monkeypatch.setenv("MEMTOOLS_WARNING", "10%")
        monkeypatch.setenv("MEMTOOLS_CRITICAL", "50%")

        seen = MemoryMonitor(warning="20%", limit="1 GiB").statistics()

        assert (seen.warning_bytes, seen.critical_bytes) == (2**30 // 5, 2**29)

    def test_other_settings_are_honoured(self, monkeypatch) -> None:
        monkeypatch.setenv("MEMTOOLS_EXHAUSTED_AFTER", "7")
        monkeypatch.setenv("MEMTOOLS_MIN_FLOW", "0.5")
        monkeypatch.setenv("MEMTOOLS_SAMPLE_EVERY", "3")
        monkeypatch.setenv("MEMTOOLS_CLEANUP_INTERVAL", "0")

        assert monitor_settings() == {
            "exhausted_after": 7.0,
            "min_flow": 0.5,
            "sample_every": 3,
            "cleanup_interval": 0.0,
        }
        assert MemoryMonitor()._engine._exhausted_after_s == 7.0
        assert MemoryMonitor(exhausted_after=9)._engine._exhausted_after_s == 9.0

    def test_misspelt_variable_warns_once_with_what_was_meant(self, monkeypatch) -> None:
        monkeypatch.setattr(memtools.config, "_warned", set())
        monkeypatch.setenv("MEMTOOLS_WARNNIG", "a secret")

        with pytest.warns(ConfigWarning, match="MEMTOOLS_WARNNIG .* did you mean MEMTOOLS_WARNING?") as caught:
            MemoryMonitor()
        MemoryMonitor()  # a second warning would be an error

        assert len(caught) == 1
        assert "a secret" not in str(caught[0].message)
        assert caught[0].filename == __file__

    def test_variables_of_the_build_are_no_mistake(self, monkeypatch) -> None:
        monkeypatch.setattr(memtools.config, "_warned", set())
        monkeypatch.setenv("MEMTOOLS_SANITIZE", "1")

        MemoryMonitor()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MEMTOOLS_WARNING", "60x"),
            ("MEMTOOLS_CRITICAL", "500m"),
            ("MEMTOOLS_EXHAUSTED_AFTER", "0"),
            ("MEMTOOLS_MIN_FLOW", "-1"),
            ("MEMTOOLS_MIN_FLOW", "many"),
            ("MEMTOOLS_SAMPLE_EVERY", "0"),
        ],
    )
    def test_invalid_variable_is_named(self, monkeypatch, name, value) -> None:
        monkeypatch.setenv(name, value)

        with pytest.raises(ConfigError) as caught:
            MemoryMonitor()

        assert caught.value.name == name
