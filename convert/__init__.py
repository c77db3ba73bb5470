"""From PyTorch checkpoints to Paddle and back, checked by running both frameworks."""

from contextlib import suppress

# First of all, as it imports NumPy in such a way that its threads take no signals (see there). Without Paddle it cannot
# be imported, of which the commands tell.
with suppress(ImportError):
    import paddle_dense  # noqa: F401  isort: skip
    import lazy_loader

    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__, submod_attrs={"any_network": ["Conversion", "compare", "convert"], "report": ["write_report"]}
    )
