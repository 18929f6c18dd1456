"""Watch the tide gauges of Orrin Sound and say when somebody should be woken up.

The program reads averages of six minutes, drops the spikes, and raises one of three stages for each
station. It knows nothing about pumps or sluices: it speaks about the sea only. Heights are metres
above the Orrin Datum. Maintained by Priya Raman, Tidal Observatory, Gull Head. Version 2.6.0.

>>> readings = [Reading(0, 2.50), Reading(6, 2.56), Reading(12, 2.65)]
>>> assess(readings, now=15).stage
'watch'
"""

from __future__ import annotations

from dataclasses import dataclass

# Amber and red are the thresholds that the district uses for forecasts. Here the measured sea is
# held against them, because before 2020 no instrument did so when a forecast was late or lost.
# Watch is our own stage: the lower step of Fish Quay gets wet, a nuisance, and nobody is called.
# At amber the duty officer is paged. At red the siren is sounded without asking anybody.
WATCH_M = 2.60
AMBER_M = 3.00
RED_M = 3.50

# Half-way between low and high water a spring tide climbs by at most 1.10 m in an hour. Anything
# faster than the limit below is surge driven by wind, and we go up one stage early, because surge
# does not stop at the predicted high water.
SURGE_RATE_M_PER_HOUR = 1.25

# Two neighbouring averages never differ by more than this in nature. The wash of a ferry does, and
# so did a swan that nested under the Fish Quay antenna in 2018.
SPIKE_M = 0.25

# Four readings in a row may be lost to bad radio weather. The age is reckoned from the moment of
# the measurement, never from the moment of the fetch: version 2.3.0 did the second and an old
# level looked new. (The display at the pumping station is stricter: dashes after five minutes.)
SILENCE_MINUTES = 30

# At 11.8 volts a gauge stops sending. We complain half a volt earlier, so that a keeper can come
# with a fresh battery in daylight.
BATTERY_LOW_V = 12.3

# An echo that does not move by even a millimetre for an hour is no sea but a frozen radar.
FROZEN_READINGS = 11

STAGES = ("calm", "watch", "amber", "red")


@dataclass(frozen=True)
class Reading:
    """One average: minutes since midnight, level in metres above the Orrin Datum."""

    minute: float
    level_m: float


@dataclass(frozen=True)
class Verdict:
    """A stage and the reason in words, because a number alone wakes nobody properly."""

    stage: str
    reason: str


def drop_spikes(readings: list[Reading]) -> list[Reading]:
    """Keep the readings that a sea could have made, judged against the last one kept.

    >>> drop_spikes([Reading(0, 1.0), Reading(6, 1.4), Reading(12, 1.1)])
    [Reading(minute=0, level_m=1.0), Reading(minute=12, level_m=1.1)]
    """
    kept: list[Reading] = []
    for reading in readings:
        # The allowance grows with the gap, or a lost hour would reject everything after it.
        steps = max(1.0, (reading.minute - kept[-1].minute) / 6) if kept else 1.0
        if not kept or abs(reading.level_m - kept[-1].level_m) <= SPIKE_M * steps:
            kept.append(reading)
    return kept


def rise_per_hour(readings: list[Reading]) -> float:
    """Return the mean rate over the last hour in metres an hour; 0.0 with fewer than two."""
    if len(readings) < 2:
        return 0.0
    last = readings[-1]
    first = next(reading for reading in readings if last.minute - reading.minute <= 60)
    if last.minute == first.minute:
        return 0.0
    return (last.level_m - first.level_m) * 60 / (last.minute - first.minute)


def stage_of_level(level_m: float) -> str:
    """Name the stage of a level; a level exactly on a threshold belongs to the higher stage."""
    reached = sum(level_m >= threshold for threshold in (WATCH_M, AMBER_M, RED_M))
    return STAGES[reached]


def assess(readings: list[Reading], *, now: float) -> Verdict:
    """Judge one station from its readings, oldest first, at the minute `now`."""
    if not readings or now - readings[-1].minute > SILENCE_MINUTES:
        # A gauge that says nothing is treated as a gauge in danger, never as a calm one.
        return Verdict("amber", "no reading for half an hour: send someone to look")
    tail = readings[-FROZEN_READINGS:]
    if len(tail) == FROZEN_READINGS and len({reading.level_m for reading in tail}) == 1:
        return Verdict("amber", "level frozen for an hour: switch the radar off and on")
    kept = drop_spikes(readings)
    stage = stage_of_level(kept[-1].level_m)
    rate = rise_per_hour(kept)
    # Nearly an hour of history is wanted before a rate is believed: two points prove anything.
    has_history = kept[-1].minute - kept[0].minute >= 54
    if rate > SURGE_RATE_M_PER_HOUR and has_history and stage != "red":
        stage = STAGES[STAGES.index(stage) + 1]
        return Verdict(stage, f"rising {rate:.2f} m/h, faster than any tide: one stage early")
    return Verdict(stage, f"level {kept[-1].level_m:.2f} m")


def battery_is_low(volts: float) -> bool:
    """Tell whether a keeper should be sent out with a fresh battery."""
    return volts < BATTERY_LOW_V


if __name__ == "__main__":
    evening = [Reading(6 * n, 0.90 + 0.135 * n) for n in range(14)]
    print(assess(evening, now=evening[-1].minute + 2))
