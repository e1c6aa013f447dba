// What JDBC programs do, by the stock driver: `Jdbc.java JDBC-URL SERVER-PID NAME…` runs the checks named.
// A line for each: `ok NAME (seconds)`, or `failed NAME: why`.

import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.reflect.InvocationTargetException;
import java.math.BigDecimal;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.Date;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Statement;
import java.sql.Time;
import java.sql.Timestamp;
import java.sql.Types;
import java.time.Duration;
import java.time.Instant;
import java.time.LocalDateTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executors;
import java.util.stream.IntStream;

class Jdbc {
    static String url;
    static Path server;

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        server = Path.of("/proc", arguments[1]);
        for (var name : Arrays.copyOfRange(arguments, 2, arguments.length)) {
            var check = Jdbc.class.getDeclaredMethod(name);
            if (!check.isAnnotationPresent(Check.class)) {
                throw new IllegalArgumentException(name + " is no check");
            }
            var begun = System.nanoTime();
            try {
                check.invoke(null);
                System.out.printf("ok %s (%.1f s)%n", name, (System.nanoTime() - begun) / 1e9);
            } catch (InvocationTargetException thrown) {
                System.out.println("failed " + name + ": " + why(thrown.getCause()));
            }
        }
    }

    /** What happened, by what, and where in this file. */
    static String why(Throwable thrown) {
        var lines = new ArrayList<String>();
        for (var cause = thrown; cause != null; cause = cause.getCause()) {
            lines.add(cause.toString());
            for (var frame : cause.getStackTrace()) {
                if (frame.getClassName().equals("Jdbc")) {
                    lines.add("  line " + frame.getLineNumber());
                }
            }
        }
        return String.join("\n  ", lines);
    }

    @Retention(RetentionPolicy.RUNTIME)
    @interface Check {}

    interface Act {
        void run() throws Exception;
    }

    static Connection connect() throws SQLException {
        return DriverManager.getConnection(url);
    }

    static void same(Object expected, Object found) {
        same("", expected, found);
    }

    static void same(String what, Object expected, Object found) {
        if (!Objects.deepEquals(expected, found)) {
            throw new AssertionError(what + ": expected " + text(expected) + ", found " + text(found));
        }
    }

    static String text(Object value) {
        return value instanceof byte[] bytes ? Arrays.toString(bytes) : value + " (" + (value == null ? null : value.getClass()) + ")";
    }

    static SQLException fails(String word, Act act) throws Exception {
        try {
            act.run();
        } catch (SQLException failed) {
            if (!failed.getMessage().contains(word)) {
                throw new AssertionError("nothing of '" + word + "'", failed);
            }
            return failed;
        }
        throw new AssertionError("it should have failed with '" + word + "'");
    }

    static void run(Connection connection, String... statements) throws SQLException {
        try (var statement = connection.createStatement()) {
            for (var sql : statements) {
                statement.execute(sql);
            }
        }
    }

    static Object one(Connection connection, String sql) throws SQLException {
        try (var statement = connection.createStatement(); var rows = statement.executeQuery(sql)) {
            same(true, rows.next());
            return rows.getObject(1);
        }
    }

    // ---- parameters

    interface Setter {
        void set(PreparedStatement statement, int index) throws SQLException;
    }

    interface Getter {
        Object get(ResultSet rows, String column) throws SQLException;
    }

    /** A column, and how a program writes and reads a value of it. */
    record Typed(String column, String sql, int type, Object value, Setter setter, Getter getter) {
        static Typed of(String column, String sql, int type, Object value, Setter setter) {
            return new Typed(column, sql, type, value, setter, ResultSet::getObject);
        }
    }

    static final Instant MOON = Instant.parse("1969-07-20T20:17:40.123Z");
    static final Timestamp MOON_CLOCK = Timestamp.valueOf("1969-07-20 20:17:40.123");

    static final List<Typed> TYPED = List.of(
            Typed.of("b", "BOOLEAN", Types.BOOLEAN, true, (s, i) -> s.setBoolean(i, true)),
            Typed.of("i", "INTEGER", Types.INTEGER, -2147483648, (s, i) -> s.setInt(i, -2147483648)),
            Typed.of("small", "INTEGER", Types.SMALLINT, -32768, (s, i) -> s.setShort(i, (short) -32768)),
            Typed.of("l", "BIGINT", Types.BIGINT, Long.MAX_VALUE, (s, i) -> s.setLong(i, Long.MAX_VALUE)),
            Typed.of("f", "REAL", Types.REAL, 1.5f, (s, i) -> s.setFloat(i, 1.5f)),
            Typed.of("d", "DOUBLE", Types.DOUBLE, -0.1, (s, i) -> s.setDouble(i, -0.1)),
            Typed.of("n", "DECIMAL(18, 3)", Types.DECIMAL, new BigDecimal("12345.678"),
                    (s, i) -> s.setBigDecimal(i, new BigDecimal("12345.678"))),
            Typed.of("s", "VARCHAR", Types.VARCHAR, "ä'\n日本", (s, i) -> s.setString(i, "ä'\n日本")),
            Typed.of("bytes", "BYTEA", Types.VARBINARY, new byte[] {0, -1}, (s, i) -> s.setBytes(i, new byte[] {0, -1})),
            Typed.of("day", "DATE", Types.DATE, Date.valueOf("1969-07-20"), (s, i) -> s.setDate(i, Date.valueOf("1969-07-20"))),
            Typed.of("clock", "TIME", Types.TIME, Time.valueOf("20:17:40"), (s, i) -> s.setTime(i, Time.valueOf("20:17:40"))),
            Typed.of("at", "TIMESTAMP", Types.TIMESTAMP, MOON_CLOCK, (s, i) -> s.setTimestamp(i, MOON_CLOCK)),
            // The driver implements no getObject of a time with a zone.
            new Typed("instant", "TIMESTAMP WITH TIME ZONE", Types.TIMESTAMP, Timestamp.from(MOON),
                    (s, i) -> s.setTimestamp(i, Timestamp.from(MOON)), ResultSet::getTimestamp));

    static void createTyped(Connection connection, String table) throws SQLException {
        var columns = TYPED.stream().map(typed -> ", " + typed.column + " " + typed.sql);
        run(connection, "CREATE TABLE " + table + " (id BIGINT" + String.join("", columns.toList()) + ")");
    }

    static PreparedStatement insertTyped(Connection connection, String table) throws SQLException {
        return connection.prepareStatement("INSERT INTO " + table + " VALUES (?" + ", ?".repeat(TYPED.size()) + ")");
    }

    static void readTyped(Connection connection, String table, int count) throws SQLException {
        try (var statement = connection.createStatement(); var rows = statement.executeQuery("SELECT * FROM " + table)) {
            for (; rows.next(); count--) {
                for (var typed : TYPED) {
                    var value = typed.getter.get(rows, typed.column);
                    // The driver has a Time of its own, which equals no other.
                    same(typed.column, typed.value, value instanceof Time ? Time.valueOf(value.toString()) : value);
                }
            }
        }
        same(0, count);
    }

    @Check
    static void parameters_of_every_type() throws Exception {
        try (var connection = connect()) {
            createTyped(connection, "jdbc_types");
            try (var insert = insertTyped(connection, "jdbc_types")) {
                insert.setLong(1, 1);
                for (int i = 0; i < TYPED.size(); i++) {
                    TYPED.get(i).setter.set(insert, i + 2);
                }
                same(1, insert.executeUpdate());
                insert.setObject(1, 1L);
                for (int i = 0; i < TYPED.size(); i++) {
                    insert.setObject(i + 2, TYPED.get(i).value);
                }
                same(1, insert.executeUpdate());
            }
            readTyped(connection, "jdbc_types", 2);
            for (var typed : TYPED) {
                for (var condition : List.of(" = ?", " IN (?)", " = CAST(? AS " + typed.sql + ")")) {
                    if (typed.type == Types.TIME && condition.contains("CAST")) {
                        continue; // DataFusion compares no times of different units, and its own are of nanoseconds
                    }
                    try (var query = connection.prepareStatement("SELECT count(*) FROM jdbc_types WHERE " + typed.column + condition)) {
                        typed.setter.set(query, 1);
                        try (var rows = query.executeQuery()) {
                            rows.next();
                            same(typed.column + condition, 2L, rows.getLong(1));
                        }
                    }
                }
            }
        }
    }

    @Check
    static void null_parameters_of_every_type() throws Exception {
        try (var connection = connect()) {
            createTyped(connection, "jdbc_nulls");
            try (var insert = insertTyped(connection, "jdbc_nulls")) {
                for (long id = 0; id < 2; id++) {
                    insert.setLong(1, id);
                    for (int i = 0; i < TYPED.size(); i++) {
                        if (id == 0) {
                            insert.setNull(i + 2, TYPED.get(i).type);
                        } else {
                            insert.setObject(i + 2, null);
                        }
                    }
                    same(1, insert.executeUpdate());
                }
            }
            try (var statement = connection.createStatement(); var rows = statement.executeQuery("SELECT * FROM jdbc_nulls")) {
                for (int row = 0; row < 2; row++) {
                    same(true, rows.next());
                    for (var typed : TYPED) {
                        same(null, typed.getter.get(rows, typed.column));
                        same(true, rows.wasNull());
                    }
                    same(0, rows.getInt("i"));
                    same(true, rows.wasNull());
                }
            }
        }
    }

    /** Places that do not tell a type: the cast does, LIMIT takes numbers, and the rest is text. */
    @Check
    static void parameters_of_no_column() throws Exception {
        try (var connection = connect()) {
            for (var asked : List.of(
                    new Object[] {"SELECT ?", "x", "x"},
                    new Object[] {"SELECT lower(?)", "X", "x"},
                    new Object[] {"SELECT CAST(? AS BIGINT)", 5L, 5L},
                    new Object[] {"SELECT ? + 1.5", 2.0, 3.5},
                    new Object[] {"SELECT CAST(? AS DECIMAL(10, 2))", new BigDecimal("1.50"), new BigDecimal("1.50")},
                    new Object[] {"SELECT count(*) FROM (SELECT value FROM generate_series(1, 9) LIMIT ?)", 4L, 4L})) {
                try (var query = connection.prepareStatement((String) asked[0])) {
                    query.setObject(1, asked[1]);
                    try (var rows = query.executeQuery()) {
                        same(true, rows.next());
                        same((String) asked[0], asked[2], rows.getObject(1));
                    }
                }
            }
            try (var query = connection.prepareStatement("SELECT value FROM generate_series(1, 9) WHERE value > ? AND value < ?")) {
                same(2, query.getParameterMetaData().getParameterCount());
                same(Types.BIGINT, query.getParameterMetaData().getParameterType(2));
            }
        }
    }

    /** In a JVM that is not in UTC the driver shifts what `getTimestamp` gives; these ways it does not. */
    @Check
    static void times_in_a_zone_of_its_own() throws Exception {
        try (var connection = connect(); var statement = connection.createStatement()) {
            statement.execute("CREATE TABLE jdbc_zones (day DATE, at TIMESTAMP, instant TIMESTAMP WITH TIME ZONE)");
            statement.execute("INSERT INTO jdbc_zones VALUES (DATE '2026-07-01', TIMESTAMP '2026-07-01 08:30:00', TIMESTAMP '2026-07-01 08:30:00')");
            try (var rows = statement.executeQuery("SELECT * FROM jdbc_zones")) {
                rows.next();
                same(Date.valueOf("2026-07-01"), rows.getDate("day"));
                same(LocalDateTime.parse("2026-07-01T08:30:00"), rows.getObject("at", LocalDateTime.class));
                same(Instant.parse("2026-07-01T08:30:00Z"), rows.getObject("instant", Instant.class));
                same("2026-07-01 08:30:00.0", rows.getString("at"));
            }
            for (var parameter : Map.of("at", Timestamp.valueOf("2026-07-01 08:30:00"), "day", Date.valueOf("2026-07-01")).entrySet()) {
                try (var query = connection.prepareStatement("SELECT count(*) FROM jdbc_zones WHERE " + parameter.getKey() + " = ?")) {
                    query.setObject(1, parameter.getValue());
                    try (var rows = query.executeQuery()) {
                        rows.next();
                        same(parameter.getKey(), 1L, rows.getLong(1));
                    }
                }
            }
        }
    }

    // ---- statements

    /** The driver sends a batch as one update and gives one count for all of it. */
    @Check
    static void batches() throws Exception {
        try (var connection = connect()) {
            run(connection, "CREATE TABLE jdbc_batch (n BIGINT, word VARCHAR)");
            try (var insert = connection.prepareStatement("INSERT INTO jdbc_batch VALUES (?, ?)")) {
                for (int batch = 0; batch < 2; batch++) {
                    for (int n = 0; n < 1000; n++) {
                        insert.setLong(1, n);
                        insert.setString(2, n % 10 == 0 ? null : "word " + n);
                        insert.addBatch();
                    }
                    same(1000, IntStream.of(insert.executeBatch()).sum());
                }
            }
            same(2000L, one(connection, "SELECT count(*) FROM jdbc_batch"));
            same(200L, one(connection, "SELECT count(*) FROM jdbc_batch WHERE word IS NULL"));
        }
    }

    @Check
    static void statements_say_what_they_are() throws Exception {
        try (var connection = connect(); var statement = connection.createStatement()) {
            same(false, statement.execute("CREATE TABLE jdbc_kinds (n BIGINT)"));
            same(0, statement.getUpdateCount());
            same(false, statement.execute("INSERT INTO jdbc_kinds VALUES (1), (2)"));
            same(2, statement.getUpdateCount());
            same(3, statement.executeUpdate("INSERT INTO jdbc_kinds VALUES (3), (4), (5)"));
            same(1L, statement.executeLargeUpdate("INSERT INTO jdbc_kinds VALUES (6)"));
            for (var query : List.of("SELECT * FROM jdbc_kinds", "EXPLAIN SELECT 1", "SHOW ALL", "DESCRIBE jdbc_kinds",
                    "WITH t AS (SELECT 1) SELECT * FROM t", "SELECT * FROM jdbc_kinds WHERE n > 100")) {
                same(true, statement.execute(query));
                try (var rows = statement.getResultSet()) {
                    same(query, !query.contains("100"), rows.next());
                }
            }
        }
    }

    @Check
    static void columns_describe_themselves() throws Exception {
        try (var connection = connect()) {
            run(connection, "CREATE TABLE jdbc_columns (id BIGINT, price DECIMAL(18, 3), word VARCHAR, at TIMESTAMP)");
            for (var sql : List.of("SELECT * FROM jdbc_columns", "SELECT * FROM jdbc_columns WHERE id = ?")) {
                try (var query = connection.prepareStatement(sql)) {
                    var columns = query.getMetaData();
                    same(4, columns.getColumnCount());
                    same("price", columns.getColumnLabel(2));
                    same(18, columns.getPrecision(2));
                    same(3, columns.getScale(2));
                    same(List.of(Types.BIGINT, Types.DECIMAL, Types.VARCHAR, Types.TIMESTAMP),
                            List.of(columns.getColumnType(1), columns.getColumnType(2), columns.getColumnType(3), columns.getColumnType(4)));
                    if (!sql.contains("?")) {
                        try (var rows = query.executeQuery()) {
                            same(18, rows.getMetaData().getPrecision(2));
                        }
                    }
                }
            }
        }
    }

    @Check
    static void nested_and_unusual_types() throws Exception {
        try (var connection = connect(); var statement = connection.createStatement();
                var rows = statement.executeQuery("SELECT [1, 2, NULL] AS list, named_struct('a', 1, 'b', 'x') AS pair,"
                        + " CAST('12:30:45' AS TIME) AS clock, INTERVAL '1 day' AS span, CAST(1 AS TINYINT) AS tiny,"
                        + " CAST(7 AS BIGINT UNSIGNED) AS big, NULL AS nothing, arrow_cast('x', 'Dictionary(Int32, Utf8)') AS word,"
                        + " arrow_cast('2026-01-01T00:00:00.000000001', 'Timestamp(Nanosecond, None)') AS fine")) {
            rows.next();
            same(new Object[] {1L, 2L, null}, rows.getArray("list").getArray());
            same("{a=1, b=x}", new java.util.TreeMap<>((Map<?, ?>) rows.getObject("pair")).toString());
            same("12:30:45", rows.getString("clock"));
            same("P1D", rows.getString("span"));
            same((byte) 1, rows.getObject("tiny"));
            same(7L, rows.getObject("big"));
            same(null, rows.getObject("nothing"));
            same("x", rows.getObject("word"));
            same(1, rows.getTimestamp("fine").getNanos());
        }
    }

    @Check
    static void rows_are_limited_as_asked() throws Exception {
        try (var connection = connect(); var statement = connection.createStatement();
                var query = connection.prepareStatement("SELECT value FROM generate_series(1, 1000000)")) {
            statement.setMaxRows(7);
            statement.setFetchSize(3);
            same(7, statement.getMaxRows());
            same(7, count(statement.executeQuery("SELECT value FROM generate_series(1, 1000000)")));
            query.setLargeMaxRows(5);
            same(5, count(query.executeQuery()));
        }
    }

    static int count(ResultSet rows) throws SQLException {
        try (rows) {
            int count = 0;
            while (rows.next()) {
                count++;
            }
            return count;
        }
    }

    // ---- ending early

    static final String LONG = "SELECT value FROM generate_series(1, 30000000) ORDER BY value % 7919, value";

    @Check
    static void timeout_gives_up() throws Exception {
        try (var connection = connect()) {
            try (var statement = connection.createStatement()) {
                statement.setQueryTimeout(1);
                same(1, statement.getQueryTimeout());
                fails("timed out", () -> statement.executeQuery(LONG).next());
            }
            waitUntilIdle();
            same(1L, one(connection, "SELECT 1"));
        }
    }

    @Check
    static void cancel_stops_the_server() throws Exception {
        try (var connection = connect(); var statement = connection.createStatement()) {
            var running = CompletableFuture.supplyAsync(() -> {
                try {
                    return (Object) statement.executeQuery(LONG).next();
                } catch (SQLException failed) {
                    return failed;
                }
            });
            var before = ticks();
            until(() -> ticks() > before + 30);
            statement.cancel();
            if (!(running.get() instanceof SQLException)) {
                throw new AssertionError("the query went on");
            }
            waitUntilIdle();
            same(1L, one(connection, "SELECT 1"));
        }
    }

    /** A result that is closed before its end. */
    @Check
    static void close_stops_the_server() throws Exception {
        try (var connection = connect()) {
            try (var statement = connection.createStatement();
                    var rows = statement.executeQuery("SELECT value FROM generate_series(1, 100000000000)")) {
                same(true, rows.next());
            }
            waitUntilIdle();
        }
    }

    @Check
    static void errors_are_told_and_the_connection_lives_on() throws Exception {
        try (var connection = connect(); var statement = connection.createStatement()) {
            for (var pair : Map.of("SELEC 1", "SELEC", "SELECT * FROM nowhere", "nowhere", "SELECT 1 / 0", "zero").entrySet()) {
                fails(pair.getValue(), () -> statement.executeQuery(pair.getKey()).next());
            }
            fails("SELEC", () -> connection.prepareStatement("SELEC 1"));
            fails("nowhere", () -> statement.executeUpdate("INSERT INTO nowhere VALUES (1)"));
            same(1L, one(connection, "SELECT 1"));
        }
    }

    @Check
    static void a_connection_has_manners() throws Exception {
        var connection = connect();
        same(true, connection.isValid(5));
        same(true, connection.getAutoCommit());
        same("Fletching", connection.getMetaData().getDatabaseProductName());
        // Tools call these without asking whether there are transactions.
        connection.setAutoCommit(true);
        connection.setReadOnly(true);
        connection.setReadOnly(false);
        connection.setTransactionIsolation(Connection.TRANSACTION_NONE);
        connection.clearWarnings();
        connection.commit();
        connection.rollback();
        run(connection, "CREATE TEMPORARY TABLE jdbc_mine AS SELECT 7 AS n");
        same(7L, one(connection, "SELECT n FROM jdbc_mine"));
        try (var other = connect()) {
            fails("jdbc_mine", () -> one(other, "SELECT n FROM jdbc_mine"));
        }
        connection.close();
        same(true, connection.isClosed());
    }

    // ---- many

    @Check
    static void ten_million_rows() throws Exception {
        try (var connection = connect(); var statement = connection.createStatement();
                var rows = statement.executeQuery("SELECT value FROM generate_series(1, 10000000)")) {
            long count = 0, sum = 0;
            while (rows.next()) {
                count++;
                sum += rows.getLong(1);
            }
            same(10_000_000L, count);
            same(50_000_005_000_000L, sum);
        }
    }

    @Check
    static void ten_thousand_statements_leave_nothing() throws Exception {
        try (var connection = connect()) {
            statements(connection, 2000);
            var before = residentKib();
            statements(connection, 8000);
            var after = residentKib();
            if (after > before + 16 * 1024) {
                throw new AssertionError("the server grew from " + before + " to " + after + " KiB");
            }
        }
    }

    /** Half of them prepared, one in fifty run, and some never closed. */
    static void statements(Connection connection, int count) throws SQLException {
        var forgotten = new ArrayList<Statement>();
        for (int i = 0; i < count; i++) {
            var is_run = i % 100 < 2;
            if (i % 2 == 0) {
                var query = connection.prepareStatement("SELECT value FROM generate_series(1, 3) WHERE value = ?");
                if (is_run) {
                    query.setLong(1, 1);
                    same(1, count(query.executeQuery()));
                }
                if (i % 20 == 4) {
                    forgotten.add(query);
                } else {
                    query.close();
                }
            } else {
                try (var statement = connection.createStatement()) {
                    same(is_run, is_run && count(statement.executeQuery("SELECT " + i)) == 1);
                }
            }
        }
        same(count / 20, forgotten.size());
    }

    @Check
    static void results_open_at_once_and_threads() throws Exception {
        try (var connection = connect()) {
            var open = new ArrayList<ResultSet>();
            for (int i = 0; i < 20; i++) {
                open.add(connection.createStatement().executeQuery("SELECT value FROM generate_series(" + i + ", 100000)"));
            }
            for (long step = 0; step < 5; step++) {
                for (int i = 0; i < 20; i++) {
                    same(true, open.get(i).next());
                    same(i + step, open.get(i).getLong(1));
                }
            }
            for (var rows : open) {
                rows.getStatement().close();
            }
            var pool = Executors.newFixedThreadPool(8);
            var found = IntStream.range(0, 64).mapToObj(i -> CompletableFuture.supplyAsync(() -> {
                try {
                    return one(connection, "SELECT sum(value) + " + i + " FROM generate_series(1, 1000)");
                } catch (SQLException failed) {
                    throw new IllegalStateException(failed);
                }
            }, pool)).toList();
            for (int i = 0; i < 64; i++) {
                same(500500L + i, found.get(i).get());
            }
            pool.shutdown();
        }
    }

    // ---- the server's process

    static long residentKib() throws Exception {
        for (var line : Files.readAllLines(server.resolve("status"))) {
            if (line.startsWith("VmRSS")) {
                return Long.parseLong(line.replaceAll("\\D", ""));
            }
        }
        throw new AssertionError("the server is gone");
    }

    /** Processor time of the server, in ticks of a hundredth of a second. */
    static long ticks() throws Exception {
        var fields = Files.readString(server.resolve("stat")).replaceFirst("^.*\\) ", "").split(" ");
        return Long.parseLong(fields[11]) + Long.parseLong(fields[12]);
    }

    static void waitUntilIdle() throws Exception {
        until(() -> {
            var before = ticks();
            Thread.sleep(200);
            return ticks() <= before + 2;
        });
    }

    interface Condition {
        boolean holds() throws Exception;
    }

    static void until(Condition condition) throws Exception {
        var deadline = System.nanoTime() + Duration.ofSeconds(10).toNanos();
        while (!condition.holds()) {
            if (System.nanoTime() > deadline) {
                throw new AssertionError("not within ten seconds");
            }
            Thread.sleep(10);
        }
    }
}
