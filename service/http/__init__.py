"""HTTP/1.1 connections, based on uvicorn. May import api and the rooms below it."""
