// Any JDBC tool: java --add-opens=java.base/java.nio=ALL-UNNAMED -cp flight-sql-jdbc-driver-18.3.0.jar Example.java

import java.sql.DriverManager;

class Example {
    public static void main(String[] arguments) throws Exception {
        var server = System.getenv().getOrDefault("FLETCHING_URL", "grpc://127.0.0.1:8815").replace("grpc://", "");
        var url = "jdbc:arrow-flight-sql://" + server + "?useEncryption=false";
        try (var connection = DriverManager.getConnection(url);
                var statement = connection.createStatement()) {
            statement.executeUpdate("CREATE TABLE IF NOT EXISTS java_words (n BIGINT, word VARCHAR)");
            statement.executeUpdate("INSERT INTO java_words VALUES (1, 'one'), (2, 'two')");
            try (var prepared = connection.prepareStatement("SELECT word FROM java_words WHERE n = ?")) {
                prepared.setLong(1, 2);
                var rows = prepared.executeQuery();
                rows.next();
                System.out.println("2 is " + rows.getString("word"));
            }
            try (var tables = connection.getMetaData().getTables(null, "public", "java%", null)) {
                tables.next();
                System.out.println(tables.getString("TABLE_NAME") + " is a " + tables.getString("TABLE_TYPE"));
            }
        }
    }
}
