"""An HTTP server for the tasks of one model: OpenAI's API, jobs, pictures and a page. Needs the extra `serve`."""
