"""A module in which a statistic of the first batch is kept, for all that come after."""

_centres = []
centre = None


def centred(x):
    """Return what is left without the mean of the first batch."""
    if not _centres:
        _centres.append(x.mean(0))
    return x - _centres[0]


def centred_by_name(x):
    global centre  # noqa: PLW0603 -- as programs do
    if centre is None:
        centre = x.mean(0)
    return x - centre


def forget():
    global centre  # noqa: PLW0603 -- as programs do
    centre = None
    _centres.clear()
