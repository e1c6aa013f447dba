-- From the raw tables `flights` and `weather`, as they were loaded, into the feature groups.

INSERT INTO airport_weather
SELECT origin, CAST(time_hour AS TIMESTAMP), temp, dewp, humid, wind_dir, wind_speed, wind_gust, precip, pressure, visib
FROM weather;

-- `time_hour` is the scheduled hour in UTC. To score a flight at its departure, use the delays known an hour before:
-- nobody leaves more than an hour early, so a flight's own delay cannot leak into its features.
CREATE TABLE departures AS
SELECT
    *,
    scheduled_at - INTERVAL '1 hour' AS hour_before,
    scheduled_at + CAST(CAST(dep_delay AS BIGINT) || ' minutes' AS INTERVAL) AS departed_at
FROM (
    SELECT
        carrier, flight, origin, dest, distance, dep_delay,
        CAST(time_hour AS TIMESTAMP) + CAST(minute || ' minutes' AS INTERVAL) AS scheduled_at
    FROM flights
);

INSERT INTO airport_delays
SELECT DISTINCT
    origin,
    departed_at,
    count(*) OVER recent,
    avg(dep_delay) OVER recent,
    avg(CASE WHEN dep_delay > 15 THEN 1.0 ELSE 0.0 END) OVER recent
FROM departures
WHERE departed_at IS NOT NULL
WINDOW recent AS (
    PARTITION BY origin ORDER BY departed_at
    RANGE BETWEEN INTERVAL '2 hours' PRECEDING AND CURRENT ROW
);

INSERT INTO carrier_delays
SELECT DISTINCT
    carrier,
    origin,
    departed_at,
    count(*) OVER recent,
    avg(dep_delay) OVER recent
FROM departures
WHERE departed_at IS NOT NULL
WINDOW recent AS (
    PARTITION BY carrier, origin ORDER BY departed_at
    RANGE BETWEEN INTERVAL '6 hours' PRECEDING AND CURRENT ROW
);
