"""The stock JDBC driver: what programs do with it (java/Jdbc.java), and every method of DatabaseMetaData."""

import re

import pytest

from support import ROOT, run

CHECKS = ROOT / "tests" / "clients" / "java" / "Jdbc.java"
METADATA = ROOT / "clients" / "java" / "Metadata.java"
NAMES = re.findall(r"@Check\s+static void (\w+)", CHECKS.read_text())
IN_NEW_YORK = ["times_in_a_zone_of_its_own"]


@pytest.fixture(scope="module")
def outcomes(server, jdbc):
    """What each check ended with. One JVM runs them all, another one the checks that are about time zones."""
    url, pid = f"jdbc:arrow-flight-sql://127.0.0.1:{server.port}?useEncryption=false", server.process.pid
    in_utc = [name for name in NAMES if name not in IN_NEW_YORK]
    output = jdbc.run(CHECKS, url, pid, *in_utc) + jdbc.run(CHECKS, url, pid, *IN_NEW_YORK, zone="America/New_York")
    print(output)
    found = re.findall(r"^(ok|failed) (\w+)(.*?)(?=^ok |^failed |\Z)", output, re.MULTILINE | re.DOTALL)
    return {name: (verdict, why) for verdict, name, why in found}


@pytest.mark.parametrize("name", NAMES)
def test_check(outcomes, name):
    verdict, why = outcomes[name]
    assert verdict == "ok", why


# The driver has no code for these: "todo: implement this method".
NOT_IN_THE_DRIVER = {
    "deletesAreDetected/1",
    "insertsAreDetected/1",
    "updatesAreDetected/1",
    "othersDeletesAreVisible/1",
    "othersInsertsAreVisible/1",
    "othersUpdatesAreVisible/1",
    "ownDeletesAreVisible/1",
    "ownInsertsAreVisible/1",
    "ownUpdatesAreVisible/1",
    "supportsResultSetHoldability/1",
}
GROUP = (
    "CREATE FEATURE GROUP jdbc_group (id BIGINT, at TIMESTAMP, price DECIMAL(10, 2) COMMENT 'in euros',"
    " ENTITY KEY (id), EVENT TIME (at))"
)
ANSWERS = {
    "getDatabaseProductName/0": "Fletching",
    "getIdentifierQuoteString/0": '"',
    "getCatalogs/0": "1 rows of 1 columns: fletching",
    "getTables/4": "jdbc_group, FEATURE GROUP",
    "getTableTypes/0": "FEATURE GROUP | LOCAL TEMPORARY | SYSTEM TABLE | TABLE | VIEW",
    "getSchemas/0": "public, fletching",
    "getPrimaryKeys/3": "jdbc_group, id, 1, null | fletching, public, jdbc_group, at, 2, null",
    "getColumns/4": "jdbc_group, price, 3, DECIMAL(10, 2), 10, null, 2, 10, 1, in euros",
    # The driver drops the columns of a result without rows.
    "getImportedKeys/3": "0 rows of 0 columns",
    "getExportedKeys/3": "0 rows of 0 columns",
    "getCrossReference/6": "0 rows of 0 columns",
    # The driver never asks the server.
    "getTypeInfo/0": "0 rows of 18 columns",
    "isReadOnly/0": "false",
    "supportsTransactions/0": "false",
    "supportsBatchUpdates/0": "true",
    "supportsFullOuterJoins/0": "true",
}


def test_all_of_database_metadata_answers(server, jdbc):
    with server.connect() as connection:
        run(connection, GROUP)
    output = jdbc.run(METADATA, "jdbc_group", url=server.url)
    answers = dict(line.split(": ", 1) for line in output.splitlines())
    assert len(answers) > 170
    assert {method for method, answer in answers.items() if answer.startswith("! ")} == NOT_IN_THE_DRIVER
    for method, expected in ANSWERS.items():
        assert expected in answers[method], (method, answers[method])
