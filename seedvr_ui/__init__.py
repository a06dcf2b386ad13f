"""The browser front end: page, uploads, queue and results. It never imports torch; the engine comes in as callables."""
