// Pointing at a method anywhere in a section makes the others step back.
for (const section of document.querySelectorAll("section.stream")) {
  const point = (event) => {
    const own = event.target.closest?.("[data-s]")?.dataset.s;
    section.classList.toggle("pointed", own !== undefined);
    for (const each of section.querySelectorAll("[data-s]")) each.classList.toggle("own", each.dataset.s === own);
  };
  section.addEventListener("pointerover", point);
  section.addEventListener("pointerleave", point);
}
