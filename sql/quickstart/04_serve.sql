-- The same features, served: one row per key asked, in that order, with the reason when there is no value.

SELECT origin, departed_at, departures_2h, mean_delay_2h, _status
FROM LATEST(airport_delays, 'EWR', 'JFK', 'LGA');

SELECT origin, observed_at, temp, wind_speed, precip, _status
FROM LATEST(airport_weather, 'EWR', 'JFK', 'LGA');

INSERT INTO airport_weather (origin, observed_at, temp, dewp, humid, wind_dir, wind_speed, precip, pressure, visib)
VALUES ('LGA', CAST(now() AS TIMESTAMP), 46.0, 39.0, 76.0, 310.0, 11.5, 0.0, 1013.2, 10.0);

SELECT origin, observed_at, temp, wind_speed, precip, _status
FROM LATEST(airport_weather, 'EWR', 'JFK', 'LGA');
