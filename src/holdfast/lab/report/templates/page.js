// Say where a table or a picture goes on beyond its right edge.
const told = new ResizeObserver((entries) => {
  for (const { target } of entries) target.classList.toggle("fits", target.scrollWidth <= target.clientWidth + 1);
});
for (const each of document.querySelectorAll(".scroll")) told.observe(each);
