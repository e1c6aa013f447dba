-- What is known about an airport, since when, and for how long it may be used.

CREATE FEATURE GROUP airport_weather (
    origin       VARCHAR    COMMENT 'airport, IATA code',
    observed_at  TIMESTAMP  COMMENT 'hour of the observation, UTC',
    temp         DOUBLE     COMMENT 'temperature, °F',
    dewp         DOUBLE     COMMENT 'dew point, °F',
    humid        DOUBLE     COMMENT 'relative humidity, %',
    wind_dir     DOUBLE     COMMENT 'direction the wind comes from, degrees',
    wind_speed   DOUBLE     COMMENT 'wind, mph',
    wind_gust    DOUBLE     COMMENT 'gusts, mph; NULL without gusts',
    precip       DOUBLE     COMMENT 'precipitation within the hour, inches',
    pressure     DOUBLE     COMMENT 'pressure at sea level, mbar',
    visib        DOUBLE     COMMENT 'visibility, miles',
    ENTITY KEY (origin),
    EVENT TIME (observed_at)
) COMMENT 'hourly weather at New York''s airports'
  WITH (ttl = '3 hours', owner = 'weather-desk', tags = 'weather,hourly');

CREATE FEATURE GROUP airport_delays (
    origin         VARCHAR                COMMENT 'airport, IATA code',
    departed_at    TIMESTAMP              COMMENT 'when a flight left, UTC; the features include it',
    departures_2h  BIGINT     DEFAULT 0   COMMENT 'departures within the last two hours',
    mean_delay_2h  DOUBLE                 COMMENT 'their mean delay, minutes',
    late_share_2h  DOUBLE                 COMMENT 'share of them more than 15 minutes late',
    ENTITY KEY (origin),
    EVENT TIME (departed_at)
) COMMENT 'how late an airport is running'
  WITH (owner = 'ops', tags = 'delays');

CREATE FEATURE GROUP carrier_delays (
    carrier        VARCHAR                COMMENT 'airline, IATA code',
    origin         VARCHAR                COMMENT 'airport, IATA code',
    departed_at    TIMESTAMP              COMMENT 'when a flight left, UTC; the features include it',
    departures_6h  BIGINT     DEFAULT 0   COMMENT 'the carrier''s departures here within the last six hours',
    mean_delay_6h  DOUBLE                 COMMENT 'their mean delay, minutes',
    ENTITY KEY (carrier, origin),
    EVENT TIME (departed_at)
) COMMENT 'how late a carrier is running at an airport'
  WITH (ttl = '12 hours', owner = 'ops', tags = 'delays');
