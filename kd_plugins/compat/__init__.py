"""Stand-ins for what an installation may lack."""


def provide_mmcv_ops() -> None:
    """To be filled."""
