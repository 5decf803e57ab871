"""What must hold for every model and card."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fleet.fit import Architecture, FitRequest, Gpu, VllmVersion, plan

VERSIONS = st.sampled_from([VllmVersion(0, 9, 2), VllmVersion(0, 12), VllmVersion(0, 22), VllmVersion(0, 33)])


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    heads = draw(st.sampled_from([8, 16, 28, 32, 40, 64]))
    layers = draw(st.integers(4, 80))
    config = {
        "model_type": "llama",
        "hidden_size": heads * 128,
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([size for size in (1, 2, 4, 8) if heads % size == 0])),
        "num_hidden_layers": layers,
        "intermediate_size": heads * 128 * draw(st.integers(2, 4)),
        "vocab_size": draw(st.integers(1000, 260_000)),
        "max_position_embeddings": 131072,
    }
    if draw(st.booleans()):
        period = draw(st.integers(2, 6))
        config["sliding_window"] = draw(st.sampled_from([128, 1024, 4096]))
        config["layer_types"] = [
            "full_attention" if (index + 1) % period == 0 or index == 0 else "sliding_attention"
            for index in range(layers)
        ]
    return Architecture.from_config(config)


@st.composite
def requests(draw: st.DrawFn) -> FitRequest:
    gpus = draw(st.sampled_from([1, 2, 4]))
    # Below 70 GiB: the larger batch that vLLM gives larger cards is a step, not a slope.
    memory = draw(st.floats(8, 69))
    return FitRequest(
        architecture=draw(architectures()),
        gpu=Gpu("some card", 0, (memory,), 8.9),
        gpus=gpus,
        tensor_parallel_size=draw(st.sampled_from([size for size in (1, 2, 4) if size <= gpus])),
        max_model_len=draw(st.integers(512, 131072)),
        gpu_memory_utilization=draw(st.floats(0.3, 0.95)),
        max_num_seqs=draw(st.sampled_from([None, 16, 256])),
        version=draw(VERSIONS),
    )


@given(requests(), st.floats(0, 30))
def test_more_memory_never_turns_a_fit_into_a_misfit(request: FitRequest, more: float) -> None:
    larger = Gpu("some card", 0, (min(69.9, request.gpu.memory_gib + more),), 8.9)

    if plan(request, suggest=False).fits:
        assert plan(replace(request, gpu=larger), suggest=False).fits


@given(requests(), st.integers(1, 100_000))
def test_a_longer_context_never_serves_more_requests(request: FitRequest, more: int) -> None:
    assert request.max_model_len is not None
    longer = replace(request, max_model_len=request.max_model_len + more)

    assert plan(longer, suggest=False).max_concurrency <= plan(request, suggest=False).max_concurrency


@given(requests(), st.integers(2, 8))
def test_ranks_that_do_not_divide_the_heads_never_fit(request: FitRequest, ranks: int) -> None:
    report = plan(replace(request, gpus=8, tensor_parallel_size=ranks), suggest=False)

    if request.architecture.attention_heads % ranks:
        assert not report.fits


@given(requests())
def test_a_suggestion_fits(request: FitRequest) -> None:
    report = plan(request)

    if report.fits:
        assert report.suggestion is None
    elif report.suggestion is not None:
        assert plan(replace(request, **report.suggestion), suggest=False).fits
