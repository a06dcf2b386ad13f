"""The public link of the server and its QR code, for admins."""

from __future__ import annotations

from typing import Any

import segno
from fastapi import FastAPI, HTTPException, Request, Response

from seedvr_ui.access import Access
from seedvr_ui.share import EXPIRY, Share


def add_share_routes(app: FastAPI, access: Access, share: Share | None) -> None:
    """Put the route on `app`; to be called before Gradio is mounted on the root."""

    @app.get("/studio/share")
    def show(request: Request, response: Response) -> dict[str, Any]:
        """`isShared` tells whether there shall be a link; `link` is empty while there is none, and `message` says why.

        `code` is a picture of the link as a data address.
        """
        if not access.require(request).is_admin:
            raise HTTPException(403, "Only admins see the public link.")
        response.headers["Cache-Control"] = "no-store"
        if share is None:
            return {"isShared": False, "link": "", "message": "", "code": "", "expiry": ""}
        state = share.state
        code = segno.make(state.link, micro=False).svg_data_uri(scale=4, border=2) if state.link else ""
        return {"isShared": True, "link": state.link, "message": state.message, "code": code, "expiry": EXPIRY}
