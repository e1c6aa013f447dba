// Queries from Node as Arrow tables, by a stock Flight SQL client: npm install && node example.js

import flightSql from '@lakehouse-rs/flight-sql-client';
import { tableFromIPC } from 'apache-arrow';

const { hostname, port } = new URL((process.env.FLETCHING_URL ?? 'grpc://127.0.0.1:8815').replace('grpc:', 'http:'));
const client = await flightSql.createFlightSqlClient({ host: hostname, port: Number(port), tls: false, headers: [] });
const query = async (sql) => tableFromIPC(await client.query(sql)).toArray().map((row) => row.toJSON());

await query(`
  CREATE FEATURE GROUP IF NOT EXISTS node_clicks (
    user_id BIGINT, at TIMESTAMP, clicks BIGINT DEFAULT 0, ENTITY KEY (user_id), EVENT TIME (at))`);
await query("INSERT INTO node_clicks VALUES (42, TIMESTAMP '2026-01-01', 3), (42, TIMESTAMP '2026-01-08', 5)");
console.log(await query('SELECT user_id, clicks, _status FROM LATEST(node_clicks, 42, 44)'));
console.log(
  await query(`
    SELECT l.user_id, f.clicks
    FROM (VALUES (42, TIMESTAMP '2026-01-07'), (42, TIMESTAMP '2026-01-09')) AS l(user_id, at)
    ASOF JOIN node_clicks f MATCH_CONDITION (l.at >= f.at) ON l.user_id = f.user_id ORDER BY l.at`),
);

const tables = tableFromIPC(await client.getTables({ tableNameFilterPattern: 'node%' }));
for (const table of tables) console.log(`${table.table_name} is a ${table.table_type}`);
