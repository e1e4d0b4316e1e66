"""Labels, and searches that are kept to be asked again."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Response

from alidade.server.asking import SearchBody
from alidade.server.exports import answer_json
from alidade.server.forms import (
    PROBLEMS,
    Done,
    FoundAgain,
    LabelForm,
    LabelsBody,
    LabelSet,
    LabelsKept,
    NotesName,
    SavedForm,
    SavedList,
    Serving,
)

router = APIRouter(prefix="/api", responses=PROBLEMS)
SearchName = Annotated[str, Path(min_length=1, max_length=100)]


@router.get("/labels")
async def read_labels(serving: Serving, name: NotesName = "default") -> LabelSet:
    """A set of labels; empty when there is none of that name."""
    labels = await serving.read_labels(name)
    names = await serving.label_sets()
    forms = {tile: LabelForm.model_validate(asdict(label)) for tile, label in labels.items()}
    return LabelSet(name=name, names=names, labels=forms)


@router.put("/labels")
async def put_labels(body: LabelsBody, serving: Serving) -> LabelsKept:
    """Set labels or take them away; those that are not named stay. They are on the disk when this answers."""
    changes = {tile: (change.mark, change.note) for tile, change in body.labels.items()}
    return LabelsKept(name=body.name, count=len(await serving.put_labels(body.name, changes)))


@router.get("/searches")
async def saved_searches(serving: Serving) -> SavedList:
    """All saved searches."""
    found = await serving.saved_searches()
    return SavedList(
        searches=[SavedForm(name=name, query=dict(s.query), time=s.time, rows=s.rows) for name, s in found.items()]
    )


@router.put("/searches/{name}")
async def save_search(name: SearchName, body: SearchBody, serving: Serving) -> Done:
    """Keep a search under a name, in place of another of that name."""
    await serving.save_search(name, body)
    return Done(name=name)


@router.delete("/searches/{name}")
async def delete_search(name: SearchName, serving: Serving) -> Done:
    """Forget a saved search."""
    await serving.delete_search(name)
    return Done(name=name)


@router.post("/searches/{name}/run", responses={200: {"model": FoundAgain}})
async def run_saved(name: SearchName, serving: Serving) -> Response:
    """Ask a saved search again; `new` are the tiles that its last answer did not have."""
    answer, new = await serving.run_saved(name)
    content = await serving.keeper.run("search", answer_json, answer.asked.id, answer.hits, answer.note, new)
    return Response(content, media_type="application/json")
