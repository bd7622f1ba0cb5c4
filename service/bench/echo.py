"""HTTP alone: takes the body and gives an answer that never changes. `python -m service.bench.echo`, on MENAGERIE_PORT.

As much of a web framework as the server has, and nothing of the server.
"""

from fastapi import FastAPI, Request, Response

from service.server import uvicorn_options
from service.settings import Settings

ANSWER = b'{"model":"echo","version":1,"predictions":[{"label":"echo","index":0,"probability":1.0}]}'

app = FastAPI()


@app.post("/predict/{model}")
async def predict(request: Request, model: str) -> Response:
    """The same answer to everything."""
    assert model
    await request.body()
    return Response(ANSWER, media_type="application/json")


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, **uvicorn_options(Settings()))
