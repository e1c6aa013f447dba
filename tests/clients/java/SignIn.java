// Connects with the stock driver as its URL says and asks a question by every way that the driver has.
// `SignIn.java URL`; a password in the environment variable PASSWORD goes beside the URL.

import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.Properties;

class SignIn {
    public static void main(String[] arguments) {
        var properties = new Properties();
        if (System.getenv("PASSWORD") != null) {
            properties.setProperty("password", System.getenv("PASSWORD"));
        }
        try (var connection = DriverManager.getConnection(arguments[0], properties);
                var statement = connection.createStatement()) {
            statement.executeUpdate("CREATE TEMP TABLE seen AS SELECT 41 AS n");
            try (var prepared = connection.prepareStatement("SELECT n + ? FROM seen")) {
                prepared.setLong(1, 1);
                var rows = prepared.executeQuery();
                rows.next();
                System.out.println("answer " + rows.getLong(1));
            }
            try (var tables = connection.getMetaData().getTableTypes()) {
                System.out.println("types " + tables.next());
            }
        } catch (SQLException refused) {
            System.out.println("refused " + refused.getMessage());
        }
    }
}
