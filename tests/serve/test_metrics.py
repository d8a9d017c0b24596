"""Counts: added up over replicas, in Prometheus' form."""

from __future__ import annotations

from serve.metrics import Metrics, text, total, without_gauges


def counted() -> Metrics:
    metrics = Metrics()
    metrics.count("medray_http_requests_total", "/livez", "GET", "200", by=3)
    metrics.gauge("medray_queue_images", 5, "chest", "generate")
    for seconds in (0.0005, 0.003, 0.003, 100.0):
        metrics.observe("medray_http_seconds", seconds, "/livez")
    return metrics


def test_the_text_is_what_prometheus_reads() -> None:
    lines = text(counted()).splitlines()
    assert 'medray_http_requests_total{route="/livez",method="GET",status="200"} 3' in lines
    assert 'medray_http_seconds_bucket{route="/livez",le="0.001"} 1' in lines
    assert 'medray_http_seconds_bucket{route="/livez",le="0.005"} 3' in lines
    assert 'medray_http_seconds_bucket{route="/livez",le="60.0"} 3' in lines
    assert 'medray_http_seconds_bucket{route="/livez",le="+Inf"} 4' in lines
    assert 'medray_http_seconds_count{route="/livez"} 4' in lines
    assert "# TYPE medray_http_seconds histogram" in lines


def test_a_label_cannot_break_out_of_its_quotes() -> None:
    metrics = Metrics()
    metrics.count("medray_inference_errors_total", 'x"} 1\nevil 2')
    assert "\nevil" not in text(metrics)


def test_replicas_add_up_and_a_lost_one_leaves_its_counts_but_not_its_queue() -> None:
    one, two = counted().snapshot(), counted().snapshot()
    both = text(total([one, without_gauges(two)]))
    assert 'status="200"} 6' in both
    assert 'medray_http_seconds_count{route="/livez"} 8' in both
    assert 'medray_queue_images{model="chest",op="generate"} 5' in both


def test_large_counts_are_written_out() -> None:
    metrics = Metrics()
    metrics.count("medray_images_total", "m", "generate", by=12_345_678_901)
    assert 'op="generate"} 12345678901' in text(metrics)
