"""A pipeline whose tests need a database server beside them. Save it as `.ci/pipeline.py`.

The server is SQLite behind a few lines of HTTP, so that this runs where nothing is installed; with
PostgreSQL it is `step.service("db", "initdb -D d && exec postgres -D d", ready="pg_isready")`.
"""

import asyncio

from pipelines import Pipeline, on_manual, on_push

SERVER = """
cat > server.py <<'END'
import http.server, json, sqlite3

store = sqlite3.connect("data.db")
store.execute("create table note (text)")

class Query(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        statement = self.rfile.read(int(self.headers["Content-Length"])).decode()
        print(statement, flush=True)
        with store:
            rows = store.execute(statement).fetchall()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(rows).encode())

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", 5432), Query).serve_forever()
END
exec python3 server.py
"""

ASK = """python3 -c '
import sys, urllib.request
answer = urllib.request.urlopen("http://db:5432/", data=sys.argv[1].encode(), timeout=10)
print("rows=" + answer.read().decode())
' "$SQL" | tee -a "$CI_OUTPUT"
"""


class Tests(Pipeline):
    triggers = [on_push(), on_manual()]

    async def run(self, event, step):
        async with step.service("db", SERVER, ready="http://127.0.0.1:5432/"):

            async def ask(name, sql):
                return (await step.sh(name, ASK, env={"SQL": sql})).outputs["rows"]

            await ask("fill", "insert into note values (1), (2)")
            found = await asyncio.gather(
                ask("sum", "select sum(text) from note"),
                ask("count", "select count(*) from note"),
            )
        return list(found)
