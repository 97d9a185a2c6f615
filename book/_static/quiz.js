// Questions that answer back. Without this script each question has its answer folded below it.
"use strict";

document.querySelectorAll("fieldset.kit-quiz").forEach((quiz) => {
  const said = quiz.querySelector("output");
  quiz.querySelector("details").hidden = true;
  quiz.addEventListener("change", (event) => {
    const right = event.target.dataset.right === "true";
    said.innerHTML = `${right ? "Right." : "Not quite."} ${event.target.dataset.says}`;
    quiz.dataset.answered = right ? "right" : "wrong";
    quiz.querySelector("details").hidden = !right;
  });
});
