-- One row per flight, each with what was known at its time: never a later row, never one older than its group's TTL.

SELECT
    d.carrier, d.flight, d.origin, d.dest, d.distance, d.scheduled_at, d.dep_delay,
    w.observed_at, w.temp, w.dewp, w.humid, w.wind_dir, w.wind_speed, w.wind_gust, w.precip, w.pressure, w.visib,
    a.departures_2h, a.mean_delay_2h, a.late_share_2h,
    c.departures_6h, c.mean_delay_6h
FROM departures d
ASOF JOIN airport_weather w
    MATCH_CONDITION (d.scheduled_at >= w.observed_at)
    ON d.origin = w.origin
ASOF JOIN airport_delays a
    MATCH_CONDITION (d.hour_before >= a.departed_at)
    ON d.origin = a.origin
ASOF JOIN carrier_delays c
    MATCH_CONDITION (d.hour_before >= c.departed_at)
    ON d.carrier = c.carrier AND d.origin = c.origin;
