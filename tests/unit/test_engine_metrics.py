from worker_manager.contract import Residency
from worker_manager.engines.engine_metrics import read

TEXT = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="demo"} 2.0
vllm:num_requests_running{engine="1",model_name="demo"} 1.0
vllm:num_requests_waiting{engine="0",model_name="demo"} 4.0
vllm:kv_cache_usage_perc{engine="0",model_name="demo"} 0.25
vllm:generation_tokens_total{engine="0",model_name="demo"} 100.0
vllm:prompt_tokens_total{engine="0",model_name="demo"} 11.0
vllm:prompt_tokens_by_source_total{engine="0",source="x"} 11.0
vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0
vllm:engine_sleep_state{engine="0",sleep_state="weights_offloaded"} 1.0
vllm:kv_cache_usage_perc{engine="2",model_name="demo"} NaN
vllm:num_requests_running{engine="2",model_name="demo"} NaN
vllm:broken{engine="0"} much
python_gc_objects_collected_total{generation="0"} 5.0
"""


def test_figures_of_all_parts_of_an_engine_are_summed() -> None:
    load = read(TEXT)
    assert (load.live, load.tokens, load.cache, load.level) == (7, 111.0, 0.25, Residency.ASLEEP_1)


def test_what_is_missing_counts_as_nothing() -> None:
    load = read("")
    assert (load.live, load.tokens, load.cache, load.level) == (0, 0.0, 0.0, Residency.HOT)


def test_an_engine_has_worked_if_tokens_came_or_its_cache_grew() -> None:
    before = read(TEXT)
    assert not read(TEXT).is_ahead_of(before)
    assert read(TEXT.replace("100.0", "101.0")).is_ahead_of(before)
    assert read(TEXT.replace("0.25", "0.26")).is_ahead_of(before)
    assert not read(TEXT.replace("0.25", "0.20")).is_ahead_of(before)
