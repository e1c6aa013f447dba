// What a BI tool can ask about the server: every method of DatabaseMetaData, one line for each answer.
// java --add-opens=java.base/java.nio=ALL-UNNAMED -cp flight-sql-jdbc-driver-18.3.0.jar Metadata.java [table]

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;

class Metadata {
    public static void main(String[] arguments) throws Exception {
        var server = System.getenv().getOrDefault("FLETCHING_URL", "grpc://127.0.0.1:8815").replace("grpc://", "");
        var url = "jdbc:arrow-flight-sql://" + server + "?useEncryption=false";
        var table = arguments.length > 0 ? arguments[0] : "java_words";
        var methods = DatabaseMetaData.class.getMethods();
        Arrays.sort(methods, Comparator.comparing(Method::getName).thenComparing(Method::getParameterCount));
        try (var connection = DriverManager.getConnection(url)) {
            for (var method : methods) {
                System.out.println(method.getName() + "/" + method.getParameterCount() + ": "
                        + ask(connection.getMetaData(), method, table));
            }
        }
    }

    static String ask(DatabaseMetaData metadata, Method method, String table) throws Exception {
        try {
            var answer = method.invoke(metadata, arguments(method, table));
            return answer instanceof ResultSet rows ? rows(rows) : String.valueOf(answer);
        } catch (InvocationTargetException failed) {
            return "! " + failed.getCause();
        }
    }

    /** No catalog and no schema, the table, and every column; every number is the first that JDBC knows. */
    static Object[] arguments(Method method, String table) {
        var types = method.getParameterTypes();
        var values = new Object[types.length];
        var tables = method.getName().matches("get(Schemas|Procedures|ProcedureColumns|Functions|FunctionColumns|UDTs)");
        for (int i = 0; i < types.length; i++) {
            if (types[i] == String.class) {
                values[i] = i % 3 == 2 && !tables ? table : null;
            } else if (types[i] == int.class) {
                values[i] = number(method.getName());
            } else if (types[i] == boolean.class) {
                values[i] = true;
            } else if (types[i] == Class.class) {
                values[i] = DatabaseMetaData.class;
            }
        }
        return values;
    }

    static int number(String name) {
        return switch (name) {
            case "supportsConvert" -> java.sql.Types.INTEGER;
            case "supportsTransactionIsolationLevel" -> java.sql.Connection.TRANSACTION_NONE;
            case "supportsResultSetHoldability" -> ResultSet.HOLD_CURSORS_OVER_COMMIT;
            case "getBestRowIdentifier" -> DatabaseMetaData.bestRowTemporary;
            default -> ResultSet.TYPE_FORWARD_ONLY;
        };
    }

    static String rows(ResultSet rows) throws SQLException {
        var found = new ArrayList<String>();
        try (rows) {
            var columns = rows.getMetaData().getColumnCount();
            while (rows.next()) {
                var row = new ArrayList<String>();
                for (int i = 1; i <= columns; i++) {
                    row.add(String.valueOf(rows.getObject(i)));
                }
                found.add(String.join(", ", row));
            }
            return found.size() + " rows of " + columns + " columns" + (found.isEmpty() ? "" : ": " + String.join(" | ", found));
        }
    }
}
