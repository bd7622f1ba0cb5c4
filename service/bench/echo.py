"""HTTP alone: reads the body and returns a constant answer. `python -m service.bench.echo`, on MENAGERIE_PORT.

It runs the server's web framework and HTTP settings, and no code of the server.
"""

from fastapi import FastAPI, Request, Response

from service.server import uvicorn_options
from service.settings import Settings

ANSWER = b'{"model":"echo","version":1,"predictions":[{"label":"echo","index":0,"probability":1.0}]}'

app = FastAPI()


@app.post("/predict/{model}")
async def predict(request: Request, model: str) -> Response:
    """The same answer to every request."""
    assert model
    await request.body()
    return Response(ANSWER, media_type="application/json")


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, **uvicorn_options(Settings()))
