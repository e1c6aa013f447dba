-- A week of it, as it is run: the join with its TTL, the filter pushed into the scan, and only the columns needed.

EXPLAIN
SELECT d.carrier, d.flight, d.dep_delay, w.visib
FROM departures d
ASOF JOIN airport_weather w
    MATCH_CONDITION (d.scheduled_at >= w.observed_at)
    ON d.origin = w.origin
WHERE d.scheduled_at >= TIMESTAMP '2013-12-24';
