"""The metrics as Prometheus reads them, and the Grafana dashboard that shows them."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from conftest import REPOSITORY
from jobs import make_job
from prometheus_client.parser import text_string_to_metric_families
from streams import (  # noqa: F401
    SHAPE,
    TASK,
    becomes_true,
    corpus,
    living_actors,
    placement_of,
    plan_of,
    settings_of,
    weights,
)

from actors.metrics import (
    COUNTERS,
    HEAD_GAUGES,
    HEAD_TAGS,
    STREAM_GAUGES,
    STREAM_TAGS,
    counter_values,
    gauge_values,
)
from actors.stream_actors import start_stream_actors
from bertvision_stream.models.backbone import BackboneWeights
from bertvision_stream.stream.corpus import Corpus
from bertvision_stream.stream.placement import ClusterResources
from bertvision_stream.stream.pool import IdleTime
from bertvision_stream.stream.stats import StreamStats
from bertvision_stream.training.head_job import HeadJob

GRAFANA = REPOSITORY / "docs" / "grafana.json"
EXPORTED = {f"ray_{name}_total" for name in COUNTERS} | {
    f"ray_{name}" for name in (*STREAM_GAUGES, *HEAD_GAUGES)
}
UNITS = ("tokens", "blocks", "bytes", "seconds", "heads", "loss")


def test_every_metric_has_a_value_and_its_unit_in_its_name():
    stats = StreamStats()
    assert counter_values(stats).keys() == COUNTERS.keys()
    assert gauge_values(stats).keys() == STREAM_GAUGES.keys()
    for name in (*COUNTERS, *STREAM_GAUGES, *HEAD_GAUGES):
        assert name.endswith(UNITS), name


def test_blocks_in_flight_and_cached():
    stats = StreamStats()
    for num_bytes in (10, 20, 30):
        stats.hold(num_bytes)
    stats.keep(20)
    assert list(gauge_values(stats).values()) == [2, 40, 1, 20]
    stats.drop(10, kept=False)
    stats.drop(20, kept=True)
    assert list(gauge_values(stats).values()) == [1, 30, 0, 0]
    assert stats.peak_bytes == 60
    stats.reset_held_blocks()
    assert list(gauge_values(stats).values()) == [0, 0, 0, 0]


def test_idleness_is_summed_over_all_who_are_idle():
    now = 5.0
    idleness = IdleTime(lambda: now)
    now += 10
    assert idleness.seconds == 0
    idleness.set(2)
    now += 3
    assert idleness.seconds == 6
    idleness.set(1)
    now += 1
    idleness.set(0)
    now += 100
    assert idleness.seconds == 7


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel


def test_the_grafana_dashboard_shows_every_metric_and_no_other():
    dashboard = json.loads(GRAFANA.read_text())
    queries = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    named = {name for query in queries for name in re.findall(r"ray_bertvision_\w+", query)}
    assert named == EXPORTED
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables.keys() == {"datasource", *STREAM_TAGS}
    for query in queries:
        assert set(re.findall(r'(\w+)=~"\$', query)) == set(STREAM_TAGS), query
        legend = set(re.findall(r"by \(([^)]*)\)", query)[0].split(", "))
        assert legend <= set(HEAD_TAGS), query


def test_the_grafana_dashboard_can_be_imported():
    """Grafana requires a title, and panels that have an id, a place and a data source each."""
    dashboard = json.loads(GRAFANA.read_text())
    assert dashboard["id"] is None  # it is given one
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 36
    shown = list(panels(dashboard))
    assert len({panel["id"] for panel in shown}) == len(shown)
    taken: set[tuple[int, int]] = set()
    for panel in shown:
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert max(x for x, _ in cells) < 24
        taken |= cells


Series = dict[frozenset[tuple[str, str]], float]
"""The values of a metric by their labels."""


def scrape(run: str) -> dict[str, Series]:
    """The metrics of a run at the endpoint of this node, by name."""
    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_bertvision_") and sample.labels["run"] == run:
                labels = frozenset((k, v) for k, v in sample.labels.items() if k in HEAD_TAGS)
                found.setdefault(sample.name, {})[labels] = sample.value
    return found


@pytest.mark.ray
def test_metrics_of_a_real_stream(
    corpus: Corpus, weights: BackboneWeights, cluster: ClusterResources
) -> None:
    """The endpoint serves what stream and trainer count, and drops a head that is removed."""
    heads = {"stays": settings_of(epochs=2), "goes": settings_of(epochs=2, lr=1e-3)}
    plan = plan_of(heads["stays"], corpus, cluster, num_extractors=1)
    placement = placement_of(num_extractors=1)
    job = make_job(heads["stays"], TASK, corpus, weights, SHAPE, plan=plan, placement=placement)
    stream_actors = start_stream_actors(job, [{n: HeadJob(s) for n, s in heads.items()}])
    try:
        stream_actors.ready()
        assert sorted(name or "" for name in living_actors()) == [
            f"{stream_actors.name}-extractor-0",
            f"{stream_actors.name}-feature-stream",
            f"{stream_actors.name}-head-trainer-0",
        ]
        for epoch in range(2):
            stream_actors.run_epoch(epoch, last_epoch=1)
        records = stream_actors.last_ends[0].records
        stream_actors.update({}, ["goes"])
        stats = stream_actors.stats
        assert stats.tokens_extracted > 0
        assert stats.blocks_from_cache > 0
        assert stats.cached_blocks > 0
        run = frozenset({"task": TASK.name, "run": stream_actors.name}.items())
        expected = {
            **{f"ray_{name}_total": {run: value} for name, value in counter_values(stats).items()},
            **{f"ray_{name}": {run: value} for name, value in gauge_values(stats).items()},
            "ray_bertvision_attached_heads": {run: 1},
            "ray_bertvision_head_loss": {run | {("head", "stays")}: records["stays"].loss},
        }
        assert expected.keys() == EXPORTED
        still_growing = "ray_bertvision_extractor_wait_seconds_total"
        waited = expected.pop(still_growing)[run]
        assert waited > 0

        def wrong() -> dict[str, tuple[Series | None, Series]]:
            found = scrape(stream_actors.name)
            assert found.keys() <= EXPORTED
            grown = found.pop(still_growing, {})
            if not waited <= grown.get(run, 0):
                return {still_growing: (grown, {run: waited})}
            now: StreamStats = stream_actors.call(stream_actors.stream.stats.remote())[0]
            assert grown[run] <= now.extract_wait_seconds
            return {
                name: (found.get(name), series)
                for name, series in expected.items()
                if found.get(name) != pytest.approx(series)
            }

        assert becomes_true(lambda: not wrong(), seconds=90), wrong()
    finally:
        stream_actors.stop()
    assert becomes_true(lambda: not living_actors())
