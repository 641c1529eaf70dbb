"""Commands of a block share its service, by name and by port; afterwards it is gone."""

import asyncio

from pipelines import CommandFailed, Pipeline, Ready

SERVER = """
cat > server.py <<'END'
import http.server
class Counter(http.server.BaseHTTPRequestHandler):
    seen = 0
    def do_GET(self):
        Counter.seen += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(Counter.seen).encode())
http.server.HTTPServer(("127.0.0.1", 18474), Counter).serve_forever()
END
exec python3 server.py
"""
ASK = """python3 -c '
import os, urllib.request
print("seen=" + urllib.request.urlopen("http://HOST:18474/").read().decode())
' >> "$CI_OUTPUT"
"""


class Scenario(Pipeline):
    async def run(self, event, step):
        async with step.service("db", SERVER, ready=Ready(port=18474)) as db:
            first = await step.sh("first", ASK.replace("HOST", db.host))
            asked = [step.sh(name, ASK.replace("HOST", "db")) for name in ("left", "right")]
            beside = await asyncio.gather(*asked)
            computed = await step.do("compute", lambda: 6 * 7)
            try:
                await step.sh("failing", "exit 3")
            except CommandFailed as error:
                failed = error.exit_code
        after = await step.sh("after", ASK.replace("HOST", db.host), allow_failure=True)
        seen = sorted(int(one.outputs["seen"]) for one in beside)
        return [first.outputs["seen"], seen, computed, failed, after.exit_code != 0]
