// Feature vectors and a training set in Go, by the stock ADBC driver for Flight SQL: go run .
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/apache/arrow-adbc/go/adbc"
	"github.com/apache/arrow-adbc/go/adbc/driver/flightsql"
	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
)

func main() {
	url := os.Getenv("FLETCHING_URL")
	if url == "" {
		url = "grpc://127.0.0.1:8815"
	}
	if err := run(context.Background(), url); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, url string) error {
	database, err := flightsql.NewDriver(memory.DefaultAllocator).NewDatabase(map[string]string{adbc.OptionKeyURI: url})
	if err != nil {
		return err
	}
	defer database.Close()
	connection, err := database.Open(ctx)
	if err != nil {
		return err
	}
	defer connection.Close()

	for _, sql := range []string{
		`CREATE FEATURE GROUP IF NOT EXISTS go_clicks (
			user_id BIGINT, at TIMESTAMP, clicks BIGINT DEFAULT 0, ENTITY KEY (user_id), EVENT TIME (at))`,
		`INSERT INTO go_clicks VALUES (42, TIMESTAMP '2026-01-01', 3), (42, TIMESTAMP '2026-01-08', 5)`,
	} {
		if err := update(ctx, connection, sql); err != nil {
			return err
		}
	}
	keys, _, err := array.RecordFromJSON(memory.DefaultAllocator,
		arrow.NewSchema([]arrow.Field{{Name: "user_id", Type: arrow.PrimitiveTypes.Int64}}, nil), strings.NewReader(`[{"user_id": 42}, {"user_id": 44}]`))
	if err != nil {
		return err
	}
	defer keys.Release()
	if err := query(ctx, connection, `SELECT user_id, clicks, _status FROM LATEST(go_clicks, ?)`, keys); err != nil {
		return err
	}
	return query(ctx, connection, `SELECT l.at, f.clicks
		FROM (VALUES (42, TIMESTAMP '2026-01-07'), (42, TIMESTAMP '2026-01-09')) AS l(user_id, at)
		ASOF JOIN go_clicks f MATCH_CONDITION (l.at >= f.at) ON l.user_id = f.user_id ORDER BY l.at`, nil)
}

func update(ctx context.Context, connection adbc.Connection, sql string) error {
	statement, err := connection.NewStatement()
	if err != nil {
		return err
	}
	defer statement.Close()
	if err := statement.SetSqlQuery(sql); err != nil {
		return err
	}
	_, err = statement.ExecuteUpdate(ctx)
	return err
}

// query prints the rows of every record batch; parameters, where there are any, are bound as one more of them.
func query(ctx context.Context, connection adbc.Connection, sql string, parameters arrow.RecordBatch) error {
	statement, err := connection.NewStatement()
	if err != nil {
		return err
	}
	defer statement.Close()
	if err := statement.SetSqlQuery(sql); err != nil {
		return err
	}
	if parameters != nil {
		if err := statement.Prepare(ctx); err != nil {
			return err
		}
		if err := statement.Bind(ctx, parameters); err != nil {
			return err
		}
	}
	batches, _, err := statement.ExecuteQuery(ctx)
	if err != nil {
		return err
	}
	defer batches.Release()
	for batches.Next() {
		rows, err := batches.RecordBatch().MarshalJSON()
		if err != nil {
			return err
		}
		fmt.Println(string(rows))
	}
	return batches.Err()
}
