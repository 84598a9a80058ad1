// What a page does beyond showing: images are chosen, folded parts open for links into them
// and for print, wide boxes take the keyboard.
// Without it everything is shown below each other.
for (const box of document.querySelectorAll(".strips")) {
  const choices = box.querySelector(".choices");
  if (!choices) continue;
  const show = () => {
    const chosen = [...choices.querySelectorAll(":checked")].map((input) => input.value).join(" ");
    const panels = [...box.querySelectorAll(".panel")];
    for (const panel of panels) panel.hidden = panel.dataset.choice !== chosen;
    box.querySelector(".none").hidden = panels.some((panel) => !panel.hidden);
  };
  choices.hidden = false;
  choices.addEventListener("change", show);
  show();
}
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  target?.scrollIntoView();
};
addEventListener("hashchange", unfold);
if (location.hash) unfold();
for (const [event, open] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => {
    for (const part of document.querySelectorAll(open ? "details.print:not([open])" : "details.unfolded")) {
      part.open = open;
      part.classList.toggle("unfolded", open);
    }
  });
}
const reach = () => {
  for (const box of document.querySelectorAll(".scroll")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
addEventListener("resize", reach);
addEventListener("load", reach);
