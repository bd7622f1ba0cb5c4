"""HTTP/1.1 connections, on uvicorn. Imports api."""
