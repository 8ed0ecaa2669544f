// Thumbs and corrections under an answer, where the server keeps them.

import { Failure, rate } from "./server.js";

export const takesFeedback = "feedback" in document.body.dataset ? attach : null;

function attach(box, id) {
  const find = (selector) => box.querySelector(selector);
  const form = find(".correction");
  let kept = {}; // what was written of this answer: a rating without it would delete it

  function pressed(rating) {
    for (const name of ["up", "down"]) find(`.${name}`).setAttribute("aria-pressed", String(name === rating));
  }

  async function send(opinion, thanks) {
    try {
      await rate({ id, ...opinion });
      pressed(opinion.rating);
      find(".thanks").textContent = thanks;
      return true;
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      const why = error.status === 404 ? "The server no longer knows this answer." : error.message;
      find(".thanks").textContent = `Not kept. ${why}`;
      return false;
    }
  }

  function close() {
    form.hidden = true;
    find(".down").focus();
  }

  box.hidden = false;
  find(".up").addEventListener("click", () => {
    form.hidden = true;
    send({ rating: "up" }, "Thank you.");
  });
  find(".down").addEventListener("click", async () => {
    form.hidden = false;
    find(".right").focus();
    await send({ rating: "down", ...kept }, "Thank you. You may add a correction.");
  });
  find(".later").addEventListener("click", close);
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    }
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const [correction, comment] = [".right", ".comment"].map((field) => find(field).value.trim() || null);
    const thanks = correction ? "Thank you. Your correction is kept." : "Thank you.";
    if (!(await send({ rating: "down", correction, comment }, thanks))) return;
    kept = { correction, comment };
    close();
  });
}
